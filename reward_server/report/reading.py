"""Says in sentences what the number of one clip means, and what it cannot tell (docs/reading.md has it at length)."""

from __future__ import annotations

from protos.types import Reward

MUCH = 20  # percentile points between the two discriminators that are worth a sentence
LOW = 5  # a percentile below which few real clips are
STILL_UNDER = 0.02  # total motion in frame heights per second; below it, nothing moves
UNSEEN = 0.2  # share of the clip outside all windows that is worth a sentence
ROLES = {
    "instantaneous": "instantaneous, which reads what optical flow does not explain between neighbouring frames",
    "long_term": "long-term, which reads point tracks through the whole window",
}

NEVER = (
    "Whether the clip was generated: smooth generated motion passes for real.",
    "Whether the motion is the one that was asked for, whether it is beautiful, or whether enough moves.",
    "Faults of a kind that the discriminators were not trained on, and anything slower than a window.",
    "The cause. The frames shown are those with the highest residual of the lowest window; a fault of the tracks can "
    "lie in others, and the nearest rung is a comparison and no diagnosis.",
)


def meaning(reward: Reward) -> list[str]:
    """What the rewards of this clip say."""
    return [*_percentile(reward), *_lower(reward), *_error(reward)]


def limits(reward: Reward, window_frames: int) -> list[str]:
    """What the rewards of this clip cannot tell. `window_frames` is the length of a whole window."""
    told = [*_unseen(reward), *_one_window(reward, window_frames)]
    if reward.clipped:
        told.append(
            f"A logit is outside {reward.bounds.min:g} to {reward.bounds.max:g} and was clipped: beyond, clips are "
            "not told apart."
        )
    if reward.dynamics and reward.dynamics.total_motion < STILL_UNDER:
        told.append("Hardly anything moves, so there is little motion to judge.")
    elif reward.dynamics and reward.dynamics.dynamic_degree == 0:
        told.append("By VBench's rule nothing in it is dynamic. Clean motion of little can get a high reward.")
    return [*told, *(f"{_capital(warning.message)}." for warning in reward.provenance.warnings)]


def _percentile(reward: Reward) -> list[str]:
    standing = reward.standing
    if standing is None:
        return ["There is no percentile: the server is older than percentiles."]
    told = [f"{_capital(standing.missing)}."] if standing.missing else []
    if standing.combined_percentile is not None:
        told.append(
            f"{standing.combined_percentile:g} % of {standing.num_clips} real clips of similar length "
            f"({standing.band}) have a lower combined reward. {_how_rare(standing.combined_percentile)}"
        )
    if standing.nearest:
        told.append(f"Its logits are nearest to those of {standing.nearest}.")
    return told


def _how_rare(percentile: float) -> str:
    if percentile < LOW:
        return "Few real clips are this low, which is a sign of something wrong."
    return "Real clips have every percentile equally often, so this alone is no sign of a fault."


def _lower(reward: Reward) -> list[str]:
    """Which discriminator has the lower percentile, if they are far apart."""
    standing = reward.standing
    if standing is None or standing.instantaneous_percentile is None or standing.long_term_percentile is None:
        return []
    percentiles = {"instantaneous": standing.instantaneous_percentile, "long_term": standing.long_term_percentile}
    low, high = sorted(percentiles, key=lambda name: percentiles[name])
    if percentiles[high] - percentiles[low] < MUCH:
        return []
    return [
        f"The lower of the two rewards is {ROLES[low]}: percentile {percentiles[low]:g} against {percentiles[high]:g}."
    ]


def _error(reward: Reward) -> list[str]:
    error = reward.standard_error
    if error is None:
        return []
    over = f"{error.num_windows} windows" if error.num_windows > 1 else f"{error.num_draws} draws of query points"
    return [f"±{error.combined:.2f} is the standard error over {over}, and a lower end."]


def _unseen(reward: Reward) -> list[str]:
    duration_s, seen_s = reward.provenance.source.duration_s, _seen_s(reward)
    if duration_s <= 0 or seen_s >= (1 - UNSEEN) * duration_s:
        return []
    return [f"Its windows cover {seen_s:.1f} of {duration_s:.1f} s. What lies between them was not looked at."]


def _seen_s(reward: Reward) -> float:
    """Seconds of the clip that lie in at least one window."""
    length_s, seen_s, end_s = reward.provenance.frames_used / reward.provenance.fps_used, 0.0, 0.0
    for start_s in sorted(window.start_s for window in reward.windows):
        seen_s += max(0.0, start_s + length_s - max(start_s, end_s))
        end_s = max(end_s, start_s + length_s)
    return seen_s


def _one_window(reward: Reward, window_frames: int) -> list[str]:
    if reward.provenance.frames_used < window_frames:
        used = reward.provenance.frames_used
        return [f"It is shorter than a window ({used} of {window_frames} frames), so less of the motion is seen."]
    if reward.standard_error is None:
        return ["It has one window and so no standard error: how far other query points would move it is not known."]
    return []


def _capital(sentence: str) -> str:
    """The sentence with a capital letter and without its full stop."""
    return sentence[:1].upper() + sentence[1:].rstrip(".")
