"""Converts explanations to protobuf messages and back."""

from __future__ import annotations

import base64

from protos import reward_pb2 as pb
from protos.codec.fields import fields_of
from protos.explanation import Explanation, PairMaps, TrackExplanation, WindowExplanation, WindowPercentiles


def explanation_to_message(explanation: Explanation) -> pb.Explanation:
    return pb.Explanation(windows=map(_window_to_message, explanation.windows), reduced=explanation.reduced)


def explanation_from_message(message: pb.Explanation) -> Explanation:
    """Raises ContractError("bad_reward") if the parts do not fit together."""
    return Explanation(windows=tuple(map(_window_from_message, message.windows)), reduced=message.reduced)


def _window_to_message(window: WindowExplanation) -> pb.WindowExplanation:
    return pb.WindowExplanation(
        times_s=window.times_s,
        tracks=map(_track_to_message, window.tracks),
        residual=_maps_to_message(window.residual),
        flow_confidence=_maps_to_message(window.flow_confidence),
        residual_curve=window.residual_curve,
        flow_confidence_curve=window.flow_confidence_curve,
        percentiles=pb.WindowPercentiles(**fields_of(window.percentiles)) if window.percentiles else None,
    )


def _window_from_message(message: pb.WindowExplanation) -> WindowExplanation:
    return WindowExplanation(
        times_s=tuple(message.times_s),
        tracks=tuple(map(_track_from_message, message.tracks)),
        residual=_maps_from_message(message.residual),
        flow_confidence=_maps_from_message(message.flow_confidence),
        residual_curve=tuple(message.residual_curve),
        flow_confidence_curve=tuple(message.flow_confidence_curve),
        percentiles=_percentiles_from_message(message.percentiles) if message.HasField("percentiles") else None,
    )


def _percentiles_from_message(message: pb.WindowPercentiles) -> WindowPercentiles:
    return WindowPercentiles(
        combined=message.combined if message.HasField("combined") else None,
        instantaneous=message.instantaneous if message.HasField("instantaneous") else None,
        long_term=message.long_term if message.HasField("long_term") else None,
    )


def _track_to_message(track: TrackExplanation) -> pb.TrackExplanation:
    return pb.TrackExplanation(
        x_px=track.x_px,
        y_px=track.y_px,
        visibility=track.visibility,
        confidence=track.confidence,
        share=track.share,
    )


def _track_from_message(message: pb.TrackExplanation) -> TrackExplanation:
    return TrackExplanation(
        x_px=tuple(message.x_px),
        y_px=tuple(message.y_px),
        visibility=tuple(message.visibility),
        confidence=tuple(message.confidence),
        share=message.share,
    )


def _maps_to_message(maps: PairMaps) -> pb.PairMaps:
    return pb.PairMaps(height=maps.height, width=maps.width, top=maps.top, cells=maps.data)


def _maps_from_message(message: pb.PairMaps) -> PairMaps:
    cells = base64.b64encode(message.cells).decode()
    return PairMaps(height=message.height, width=message.width, top=message.top, cells=cells)
