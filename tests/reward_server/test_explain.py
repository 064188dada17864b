"""Tests explanations: what they show agrees with what was scored, they stay within their limit, and no one pays for
them who did not ask."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from protos.codec import clip_to_tensor
from protos.codec.explanations import explanation_to_message
from protos.explanation import Explanation
from protos.types import Clip, Context, Media, Outcome, Reward, Source, Submission
from reward_server.decoding.decode import DecodedClip, Window
from reward_server.discriminators.track_statistics import BOUND, StatisticsLogit, statistics
from reward_server.discriminators.track_vit import TrackViT
from reward_server.explain.explanation import displayed_places, explanation
from reward_server.explain.pool import PoolWatch
from reward_server.explain.room import room_for
from reward_server.motion import Motion, random_queries
from reward_server.pipeline import Pipeline
from reward_server.pipeline import pipeline as pipeline_module
from reward_server.profiles.discriminators import Discriminators, new_discriminators
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.profiles.shift import ShiftProfile
from reward_server.settings import Settings
from tests.frozen import small_profile
from tests.media import texture, video, with_display_matrix

QUARTER_TURN = (0, -1, 1, 0)


def tensor(frames: int = 10, seed: int = 0, **context: object) -> Submission:
    clip = Clip(frames=texture(frames, 144, 256, seed=seed).transpose(0, 3, 1, 2).copy(), fps=12.0)
    return Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=Context(**context))  # type: ignore[arg-type]


def reward(outcome: Outcome) -> Reward:
    assert outcome.reward is not None, outcome.error
    return outcome.reward


def explained(pipeline: Pipeline, clip: Submission) -> Explanation:
    asking = dataclasses.replace(clip, context=dataclasses.replace(clip.context, explain=True))
    seen = reward(pipeline.score_submissions([asking])[0]).explanation
    assert seen is not None
    return seen


# --- who asked and who did not ------------------------------------------------------------------


def test_an_explanation_changes_nothing_else(small_pipeline: Pipeline) -> None:
    plain, asked = (
        reward(outcome)
        for clips in ([tensor()], [tensor(explain=True)])
        for outcome in small_pipeline.score_submissions(clips)
    )
    assert plain.explanation is None
    assert asked.explanation is not None
    timings = plain.provenance.timings
    same = dataclasses.replace(
        asked, explanation=None, provenance=dataclasses.replace(asked.provenance, timings=timings)
    )
    assert same == plain


def test_only_the_clip_of_a_batch_that_asks_is_explained(small_pipeline: Pipeline) -> None:
    clips = [tensor(seed=0), tensor(seed=1, explain=True, query_seed=4), tensor(seed=2)]
    prepared = [small_pipeline.prepare(clip) for clip in clips]
    rewards = [scored.result for scored in small_pipeline.score(prepared)]
    assert [isinstance(one, Reward) and one.explanation is not None for one in rewards] == [False, True, False]
    assert isinstance(rewards[1], Reward)
    assert rewards[1].explanation is not None
    alone = explained(small_pipeline, clips[1])
    shares = [[track.share for track in seen.windows[0].tracks] for seen in (rewards[1].explanation, alone)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-5)
    assert rewards[1].explanation.windows[0].residual == alone.windows[0].residual


def test_who_does_not_ask_pays_nothing(small_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is anything computed, nor does the discriminator keep a hook of an earlier clip that asked."""
    explained(small_pipeline, tensor())
    hooks = [module._forward_pre_hooks for module in small_pipeline.discriminators.long_term.modules()]
    assert not any(hooks)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made without being asked for")

    monkeypatch.setattr(pipeline_module, "PoolWatch", never)
    monkeypatch.setattr(pipeline_module, "explanation", never)
    assert reward(small_pipeline.score_submissions([tensor()])[0]).explanation is None


def test_a_clip_that_cannot_be_scored_has_the_same_error_with_and_without(small_pipeline: Pipeline) -> None:
    plain, asked = small_pipeline.score_submissions([tensor(frames=3), tensor(frames=3, explain=True)])
    assert plain.error == asked.error
    assert plain.kind == asked.kind


# --- what is shown ------------------------------------------------------------------------------


def test_times_maps_and_curves_are_those_of_the_windows(small_pipeline: Pipeline) -> None:
    clip = tensor(frames=26)
    seen = explained(small_pipeline, clip)
    prepared = small_pipeline.prepare(clip)
    motions = [
        small_pipeline.profile.motion(window.clip, query_seed=prepared.query_seed, num_tracks=16)
        for window in prepared.decoded.windows
    ]
    assert len(seen.windows) == 2
    [top] = {window.residual.top for window in seen.windows}  # one scale, so that the windows can be compared
    for shown, window, motion in zip(seen.windows, prepared.decoded.windows, motions, strict=True):
        assert shown.times_s == pytest.approx([window.start_s + t / 12 for t in range(16)], abs=1e-4)
        assert shown.residual_curve == pytest.approx(motion.residual.abs().mean(dim=(1, 2)).tolist(), abs=1e-4)
        assert shown.flow_confidence_curve == pytest.approx(motion.flow_confidence.mean(dim=(1, 2)).tolist(), abs=1e-4)
        cells = motion.residual.abs().reshape(15, 36, 4, 64, 4).mean(dim=(2, 4)).numpy()
        assert np.abs(shown.residual.values() - cells).max() <= top / 255
        assert np.abs(shown.flow_confidence.values().mean(axis=(1, 2)) - shown.flow_confidence_curve).max() < 1 / 255
    assert seen.reduced == ""


def test_tracks_follow_the_picture_in_the_clips_own_pixels(small_pipeline: Pipeline) -> None:
    """The picture moves 4 px to the left per frame. It is twice as high and wide as the profile's frames."""
    frames = texture(10, 288, 512, step=4)
    clip = Submission(payload=video(frames, fps=12.0), media=Media.CONTAINER)
    [window] = explained(small_pipeline, clip).windows
    assert len(window.tracks) == 16
    for track in window.tracks:
        if min(track.visibility) == 1:
            assert np.diff(track.x_px) == pytest.approx(-4, abs=0.3)
            assert np.diff(track.y_px) == pytest.approx(0, abs=0.3)
    assert sum(min(track.visibility) for track in window.tracks) >= 8
    assert max(track.x_px[0] for track in window.tracks) > 256


def test_tracks_of_a_turned_clip_are_in_the_turned_picture(small_pipeline: Pipeline) -> None:
    """Stored as 256x144 and shown as 144x256. What moves left when stored moves up or down when shown."""
    stored = video(texture(10, 144, 256, step=4), fps=12.0)
    clip = Submission(payload=with_display_matrix(stored, QUARTER_TURN), media=Media.CONTAINER)
    [window] = explained(small_pipeline, clip).windows
    steady = [track for track in window.tracks if min(track.visibility) == 1]
    assert len(steady) >= 8
    for track in steady:
        assert np.abs(np.diff(track.y_px)) == pytest.approx(4, abs=0.3)
        assert np.diff(track.x_px) == pytest.approx(0, abs=0.3)
        assert max(track.x_px) < 144
    assert max(track.y_px[0] for track in window.tracks) > 144
    assert window.residual.height > window.residual.width


def test_tracks_of_a_clip_with_wide_pixels_are_in_displayed_pixels(small_pipeline: Pipeline) -> None:
    """A pixel that is twice as wide as high: the picture moves 4 displayed pixels for 2 stored ones."""
    stored = video(texture(10, 144, 128, step=2), fps=12.0, pixel_aspect=Fraction(2))
    [window] = explained(small_pipeline, Submission(payload=stored, media=Media.CONTAINER)).windows
    steady = [track for track in window.tracks if min(track.visibility) == 1]
    assert len(steady) >= 8
    assert all(np.diff(track.x_px) == pytest.approx(-4, abs=0.4) for track in steady)


def test_the_edges_of_a_frame_stay_its_edges() -> None:
    """Pixel centres are whole numbers, so a frame reaches from -0.5 to its width minus 0.5."""
    source = Source(frames=2, fps=1, duration_s=2, height_px=1080, width_px=1920, codec="h264")
    edges = torch.tensor([[[-0.5, -0.5], [255.5, 143.5], [127.5, 71.5]]])
    assert displayed_places(edges, (144, 256), source).tolist() == [[[-0.5, -0.5], [1919.5, 1079.5], [959.5, 539.5]]]


@pytest.fixture(scope="module")
def shift() -> ShiftProfile:
    """The profile `shift`, small, with random networks."""
    return small_profile()


def test_shift_tracks_begin_at_their_query_points(shift: ShiftProfile) -> None:
    """Its tracker resizes the clip's frames, here 64x96, to 96x128 pixels."""
    points = torch.from_numpy(random_queries(3, 8, 64, 96)).float()
    resized = shift.networks.tracker.model_queries(torch.nn.functional.pad(points, (1, 0)), 64, 96)[:8, 1:]
    assert resized.max() > 96
    begun = shift.clip_tracks(SimpleNamespace(tracks=resized[None]), 64, 96)  # type: ignore[arg-type]
    assert begun[0].numpy() == pytest.approx(points.numpy(), abs=1e-3)


def test_a_clip_is_explained_by_shift_too(shift: ShiftProfile) -> None:
    torch.manual_seed(0)
    heads = [head.eval() for head in new_discriminators(shift)]
    discriminators = Discriminators(instantaneous=heads[0], long_term=heads[1], version="random", digest="")  # type: ignore[arg-type]
    frames = texture(4, 128, 192, step=1)
    clip = Clip(frames=frames.transpose(0, 3, 1, 2).copy(), fps=14.0)
    asked = Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=Context(query_seed=3))
    pipeline = Pipeline(shift, discriminators, Settings(num_tracks=16, threads=1, decode_isolation=False))
    [window] = explained(pipeline, asked).windows
    points = (random_queries(3, 16, 64, 96) + 0.5) * 2 - 0.5  # the clip is twice as large as its decoded frames
    begun = np.array([(track.x_px[0], track.y_px[0]) for track in window.tracks])
    assert np.abs(begun - points).max() < 60  # its random tracker moves even the query points, but not across the frame
    assert (len(window.times_s), window.residual.values().shape) == (4, (3, 43, 64))
    assert all(0 <= value <= 1 for track in window.tracks for value in (*track.visibility, *track.confidence))


# --- shares -------------------------------------------------------------------------------------


def watched(network: TrackViT, tokens: torch.Tensor) -> PoolWatch:
    with torch.inference_mode(), PoolWatch(network=network) as pool:
        network(tokens)
    return pool


@pytest.mark.parametrize("num_tracks", [16, 17, 40])
def test_a_share_is_exactly_what_the_pools_lose_without_the_track(num_tracks: int) -> None:
    """Checked by leaving each track out and pooling again, with ties among the cues."""
    torch.manual_seed(0)
    profile = EmbeddedProfile()
    network = new_discriminators(profile)[1].eval()
    cues = network.config.num_cues
    tokens = torch.randn(2, num_tracks, 9, network.config.token_dim)
    tokens[..., -cues:] = (2 * tokens[..., -cues:]).round() / 2
    pool = watched(network, tokens)

    def pooled(features: torch.Tensor, tokens_NTD: torch.Tensor) -> float:
        assert isinstance(network.statistics, StatisticsLogit)
        second = network.statistics.classifier(network.statistics.norm(statistics(tokens_NTD[None, ..., -cues:])))
        return float(network.classfier_head(features[None])) + float(BOUND * torch.tanh(second / BOUND))

    with torch.inference_mode():
        features, logits = network.trunk(tokens), network(tokens)
        for window in range(2):
            assert pooled(features[window], tokens[window]) == pytest.approx(float(logits[window]), abs=1e-5)
            shares = pool.shares(window, 12)
            for left_out, share in enumerate(shares):
                rest = [track for track in range(num_tracks) if track != left_out]
                without = pooled(features[window][rest], tokens[window][rest])
                assert share == pytest.approx(float(logits[window]) - without, abs=2e-5)


def test_a_discriminator_without_statistics_has_shares_too(shift: ShiftProfile) -> None:
    torch.manual_seed(0)
    network = new_discriminators(shift)[1].eval()
    tokens = torch.randn(1, 5, 4, network.config.token_dim)
    with torch.inference_mode():
        features, whole = network.trunk(tokens), network(tokens)
        without = network.classfier_head(features[:, 1:])
    assert watched(network, tokens).shares(0, 1) == pytest.approx([float(whole - without)], abs=1e-5)


# --- the limit ----------------------------------------------------------------------------------


def test_the_limit_holds_for_any_clip_and_says_what_it_cost() -> None:
    for windows, frames in ((1, 8), (4, 16), (4, 49), (16, 49), (64, 49)):
        for limit in (128 * 1024, 1024 * 1024):
            told, size = made(windows, frames, limit)
            assert size <= limit
            assert (told.reduced == "") == (told.windows[0].residual.width == 64)
            assert all(len(window.residual_curve) == frames - 1 for window in told.windows)
    told, _ = made(4, 49, 1024 * 1024)
    assert "maps have" in told.reduced
    assert "tracks" not in told.reduced.partition(" cells instead")[0]
    assert len(told.windows[0].tracks) == 64  # maps get smaller before tracks are left out
    told, _ = made(64, 49, 128 * 1024)
    assert "tracks instead of 64 are shown" in told.reduced
    assert "131072 bytes (explain_max_bytes)" in told.reduced


def made(windows: int, frames: int, limit: int) -> tuple[Explanation, int]:
    """An explanation of motions that are all zeros and ones, and its size as a message."""
    height, width = 36, 64
    motion = Motion(
        tracks=torch.full((frames, 70, 2), 123.456),
        visibility=torch.ones(frames, 70),
        confidence=torch.full((frames, 70), 0.123),
        correlation=torch.zeros(frames, 70, 1, 1, 1),
        flow=torch.zeros(frames - 1, 2, height, width),
        residual=torch.ones(frames - 1, height, width),
        flow_confidence=torch.ones(frames - 1, height, width),
        fps=12.0,
    )
    clip = Clip(frames=np.zeros((frames, 3, height, width), np.uint8), fps=12.0)
    source = Source(frames=frames, fps=12, duration_s=9, height_px=1080, width_px=1920, codec="h264")
    network = new_discriminators(EmbeddedProfile())[1].eval()
    pool = PoolWatch(
        network=network,
        features=[torch.randn(70, network.config.dim)] * windows,
        cues=[torch.randn(70, frames, network.config.num_cues)] * windows,
    )
    decoded = DecodedClip(
        windows=tuple(Window(start_s=float(at), clip=clip) for at in range(windows)), source=source, fps_used=12.0
    )
    told = explanation(
        decoded, [motion] * windows, profile=EmbeddedProfile(), pool=pool, first_window=0, max_bytes=limit
    )
    return told, len(explanation_to_message(told).SerializeToString())  # type: ignore[no-untyped-call]


def test_a_small_or_upright_frame_has_maps_of_its_shape() -> None:
    for (height, width), cells in {(144, 256): (36, 64), (256, 144): (64, 36), (20, 30): (20, 30)}.items():
        room, reduced = room_for(
            windows=1, frames=4, height_px=height, width_px=width, tracks=16, max_bytes=1024 * 1024
        )
        assert (room.height, room.width, room.tracks, reduced) == (*cells, 16, "")


def test_the_limit_is_a_setting(discriminators_file: object) -> None:
    settings = Settings(checkpoint=discriminators_file, num_tracks=128, threads=1, explain_max_bytes=128 * 1024)  # type: ignore[arg-type]
    seen = explained(Pipeline.load(settings), tensor(frames=60))
    assert "(explain_max_bytes)" in seen.reduced
    assert seen.windows[0].residual.width < 64


def test_a_broken_discriminator_is_an_error_with_an_explanation_too(small_pipeline: Pipeline) -> None:
    broken = new_discriminators(EmbeddedProfile())
    with torch.no_grad():
        broken[1].classfier_head.norm.bias.fill_(float("nan"))
    heads = Discriminators(instantaneous=broken[0].eval(), long_term=broken[1].eval(), version="nan", digest="")
    prepared = small_pipeline.prepare(tensor(explain=True), heads)
    [scored] = small_pipeline.score([prepared])
    assert not isinstance(scored.result, Reward)
    assert scored.result.code == "non_finite_logit"
