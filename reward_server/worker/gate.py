"""The refresh gate: a new version that is worse than its parent on the run's anchor set is not published.

A run's anchor set is the clips that its first large enough refresh held out. It stays the same for all later refreshes,
and no refresh trains on it. A clip whose file is lost leaves it, and if that leaves fewer than gate_min_clips of an
origin, the next large enough refresh makes a new set. A run that has none, also in between, has no gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from protos.types import Anchor, DiscriminatorName, DiscriminatorRefresh
from reward_server.errors import GateFailed
from reward_server.settings import Settings

AMOUNT_FALL = 0.2  # of a rank correlation; of 16 to 64 clips, less says nothing


def check_gate(report: Mapping[DiscriminatorName, DiscriminatorRefresh], settings: Settings) -> None:
    """Raises GateFailed, with the figures of both discriminators, if one of them passes a limit."""
    anchors = {name: refresh.anchor for name, refresh in report.items() if refresh.anchor}
    reasons = [f"{name}: {reason}" for name, anchor in anchors.items() for reason in failures(anchor, settings)]
    if reasons:
        figures = "; ".join(f"{name}: {told(anchor)}" for name, anchor in anchors.items())
        raise GateFailed(
            f"the refresh failed the gate on the run's anchor set, so the version before serves on: "
            f"{', '.join(reasons)} ({figures}); try a lower learning_rate or fewer steps, or widen the limit"
        )


def failures(anchor: Anchor, settings: Settings) -> Iterator[str]:
    """The limits that a discriminator passes, each with its value and its setting."""
    before, after = anchor.before, anchor.after
    if before.auc - after.auc > settings.gate_max_auc_drop:
        yield f"the AUC fell by {before.auc - after.auc:.3f}, over {settings.gate_max_auc_drop:g} (gate_max_auc_drop)"
    fall, limit = before.logit_gap - after.logit_gap, settings.gate_max_gap_drop
    if after.logit_gap < 0 and fall > limit:
        yield f"real clips are below rollouts: the logit gap fell by {fall:.3g}, over {limit:g} (gate_max_gap_drop)"
    if anchor.drift > settings.gate_max_drift:
        yield f"logits changed by {anchor.drift:.3f} of the range, over {settings.gate_max_drift:g} (gate_max_drift)"
    saturation, limit = anchor.saturation_after, settings.gate_max_saturation
    if saturation > max(limit, anchor.saturation_before):
        yield f"{saturation:.0%} of the logits are outside of the bounds, over {limit:.0%} (gate_max_saturation)"
    yield from _attack_failures(anchor, settings)


def _attack_failures(anchor: Anchor, settings: Settings) -> Iterator[str]:
    if anchor.copies_before is not None and anchor.copies_after is not None:
        fall, limit = anchor.copies_before - anchor.copies_after, settings.gate_max_copies_drop
        if fall > limit:
            yield (
                f"the share of held and gliding copies below their real clip fell by {fall:.0%}, over {limit:.0%} "
                "(gate_max_copies_drop)"
            )
    for origin, before, after in (
        ("real clips", anchor.amount_real_before, anchor.amount_real_after),
        ("rollouts", anchor.amount_rollouts_before, anchor.amount_rollouts_after),
    ):
        limit = settings.gate_min_amount
        if before is not None and after is not None and after < limit and before - after > AMOUNT_FALL:
            yield (
                f"among {origin}, less motion pays: the correlation of the logit with the amount of motion fell from "
                f"{before:+.2f} to {after:+.2f}, below {limit:g} (gate_min_amount)"
            )


def told(anchor: Anchor) -> str:
    """The figures of one discriminator, before and after."""
    before, after = anchor.before, anchor.after
    return (
        f"AUC {before.auc:.3f} -> {after.auc:.3f}, gap {before.logit_gap:.3g} -> {after.logit_gap:.3g}, drift "
        f"{anchor.drift:.3f}, saturation {anchor.saturation_before:.2f} -> {anchor.saturation_after:.2f}"
        f"{_told_attack(anchor)}"
    )


def _told_attack(anchor: Anchor) -> str:
    found = (
        ("copies below", anchor.copies_before, anchor.copies_after),
        ("amount, real", anchor.amount_real_before, anchor.amount_real_after),
        ("amount, rollouts", anchor.amount_rollouts_before, anchor.amount_rollouts_after),
    )
    return "".join(
        f", {name} {before:.2f} -> {after:.2f}"
        for name, before, after in found
        if before is not None and after is not None
    )
