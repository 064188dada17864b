"""Tests the shift profile: its motion is the networks', it needs weights, and its cache is as exact as stated."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import structlog
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from protos.codec import clip_to_tensor
from protos.types import Clip, Context, Media, OutcomeKind, Submission
from reward_server.decoding.sampling import profile_size
from reward_server.errors import BadRequest, NotReady
from reward_server.evaluation import bench
from reward_server.models.published import SEA_RAFT
from reward_server.models.store import store
from reward_server.motion import NetworkMotion, mixture_confidence, random_queries, residual_map
from reward_server.networks.prepacked import Compute, Linear, Precision, set_compute
from reward_server.pipeline import Pipeline
from reward_server.profiles import load_profile
from reward_server.profiles.discriminators import (
    Discriminators,
    discriminators_file,
    load_discriminators,
    new_discriminators,
    save_discriminators,
)
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.profiles.run_clips import pack_clip, read_clip
from reward_server.profiles.shift import Networks, ShiftProfile, load_shift
from reward_server.settings import Settings
from reward_server.training.feature_cache import FeatureCache, Sample, pack, unpack_maps, unpack_tokens
from reward_server.training.pretrain_config import configs
from reward_server.training.reference_discriminators import import_discriminators
from tests.frozen import random_sea_raft, small_profile
from tests.media import texture


def clip(num_frames: int = 4, height: int = 64, width: int = 96, seed: int = 0) -> Clip:
    return Clip(frames=texture(num_frames, height, width, seed=seed).transpose(0, 3, 1, 2).copy(), fps=14.0)


@pytest.fixture(scope="module")
def profile() -> ShiftProfile:
    return small_profile()


@pytest.fixture(scope="module")
def motion(profile: ShiftProfile) -> NetworkMotion:
    return profile.motion(clip(), query_seed=3, num_tracks=20)


def tokens(profile: ShiftProfile, motion: NetworkMotion, chosen: slice = slice(None)) -> torch.Tensor:
    return profile.track_tokens(motion.tracks, *motion.state.unbind(-1), motion.correlation, chosen=chosen)


# --- motion -------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_trackers_last_iteration(profile: ShiftProfile, motion: NetworkMotion) -> None:
    points = torch.from_numpy(random_queries(3, 20, 64, 96)).float()
    frames = torch.from_numpy(clip().frames)[None]
    expected = profile.networks.tracker(frames, F.pad(points, (1, 0))[None], tokens_only=True).tokens[0]
    torch.testing.assert_close(tokens(profile, motion), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens(profile, motion, slice(5, 9)), expected[5:9], rtol=0, atol=1e-5)


def test_maps_are_the_papers_formulas_on_sea_raft(profile: ShiftProfile, motion: NetworkMotion) -> None:
    frames = torch.from_numpy(clip().frames).float()[None]
    estimate = profile.networks.flow_net(frames)
    expected = torch.stack([residual_map(frames, estimate.flow), mixture_confidence(estimate.info, 0, 10)], dim=2)[0]
    torch.testing.assert_close(profile.residual_maps(motion), expected)


def test_flow_resizes_a_clip_to_the_discriminators_size(profile: ShiftProfile) -> None:
    odd = clip(height=80, width=80)
    frames = F.interpolate(torch.from_numpy(odd.frames).float(), (64, 96), mode="bilinear", align_corners=False)
    motion = profile.motion(odd, query_seed=0, num_tracks=16)
    torch.testing.assert_close(motion.flow, profile.networks.flow_net(frames[None]).flow[0])


def test_sizes_and_rates_are_the_papers(profile: ShiftProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Networks, "load", lambda *_: profile.networks)
    shift, wan = (load_shift(name, Path(), device="cpu", compute=Compute()) for name in ("shift", "shift-wan"))
    assert (shift.sampling.fps, shift.sampling.window_frames, shift.num_tracks) == (14.0, 24, 1024)
    assert (wan.sampling.fps, wan.sampling.window_frames) == (24.0, 49)
    assert profile_size(320, 576, shift.sampling) == profile_size(720, 1280, shift.sampling) == (320, 576)
    assert profile_size(480, 832, wan.sampling) == (480, 832)
    for one, size in ((shift, (320, 576)), (wan, (480, 832))):
        config = one.residual_config
        assert (config.height_px, config.width_px) == size
        assert (config.dim, config.depth, config.heads, config.patch_px, config.compressed) == (
            768,
            12,
            12,
            16,
            False,
        )
        assert (one.track_config.token_dim, one.track_config.dim, one.track_config.depth) == (1110, 384, 3)
    assert len({shift.preprocessing_digest, wan.preprocessing_digest, profile.preprocessing_digest}) == 3


def test_emulated_bf16_gives_a_warning(profile: ShiftProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Networks, "load", lambda *_: profile.networks)
    monkeypatch.setattr("reward_server.profiles.shift.has_bf16", lambda _: False)
    with structlog.testing.capture_logs() as logs:
        load_shift("shift", Path(), device="cpu", compute=Compute())
        assert not logs
        load_shift("shift", Path(), device="cpu", compute=Compute(precision="bf16"))
    assert [(entry["log_level"], entry["choose"]) for entry in logs] == [("warning", "fp32")]


def test_digests_depend_on_the_networks_weights() -> None:
    one, other = small_profile(), small_profile()
    assert one.preprocessing_digest == other.preprocessing_digest
    changed = dataclasses.replace(one.networks, digests={"cotracker3": "a", "sea_raft": "c"})
    assert small_profile(networks=changed).preprocessing_digest != one.preprocessing_digest
    assert load_profile("embedded", Path()).preprocessing_digest == EmbeddedProfile().preprocessing_digest


# --- cache --------------------------------------------------------------------------------------


def test_cached_tokens_and_maps_are_within_the_stated_rounding(profile: ShiftProfile, motion: NetworkMotion) -> None:
    wild = dataclasses.replace(motion, residual=motion.residual * 30)  # beyond what a fine code could hold
    packed = pack(wild, num_pairs=3)
    error = (unpack_tokens(packed, profile, 0, 20) - tokens(profile, wild)).abs()
    logits = motion.logits.transpose(0, 1).abs()
    assert bool((error[..., :2] <= logits / 2048 + 1e-7).all())
    largest = motion.correlation.abs().amax(dim=(0, 1))
    assert bool((error[..., 2:1026] <= largest / 254 * (1 + 1e-4) + 1e-6).all())
    assert float(error[..., 2:1026].max()) > 0  # it is rounded at all
    assert float(error[..., 1026:].max()) < 1e-6  # displacements are made of exact tracks
    maps, residual = unpack_maps(packed["maps"]), wild.residual
    inside = residual.abs() <= 1008
    bound = residual.abs().sqrt() / 4 + 1 / 64 + 1e-3
    assert float(residual[inside].abs().max()) > 252
    assert bool(((maps[:, 0] - residual).abs() <= bound)[inside].all())
    assert bool(((maps[:, 1] - wild.flow_confidence).abs() <= 1 / 510 + 1e-6).all())


def test_a_cached_clip_has_the_stated_size_and_is_read_by_rows(
    profile: ShiftProfile, motion: NetworkMotion, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)
    sample = Sample(key="ab", source="s", view="v", real=True, fault="", strength=0.0, shape=(4, 64, 96))
    cache.add(sample, motion, num_pairs=2)
    path = tmp_path / "ab" / "ab.safetensors"
    with safe_open(path, framework="pt") as file:
        num_bytes = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 - no dict
    assert num_bytes == 20 * 4 * 1036 + 2 * 2 * 64 * 96 + 4 * 1024
    torch.testing.assert_close(cache.tokens(sample, profile, 7, 5), cache.tokens(sample, profile, 0, 20)[7:12])
    assert cache.maps(sample, 1, 1).shape == (1, 2, 64, 96)
    assert (cache.num_tracks(sample), cache.num_pairs(sample)) == (20, 2)


def test_a_packed_clip_may_keep_its_first_tracks_only(profile: ShiftProfile, motion: NetworkMotion) -> None:
    clip_of_run = read_clip(pack_clip(motion, num_pairs=2, num_tracks=8, group_id="g"))
    assert (clip_of_run.num_tracks, clip_of_run.num_pairs) == (8, 2)
    near = clip_of_run.tokens(profile, 2, 4)
    exact = tokens(profile, motion, slice(2, 6))
    largest = motion.correlation.abs().amax()
    assert near.shape == exact.shape
    assert float((near - exact).abs().max()) <= float(largest) / 254 * 1.001 + 1e-6


def test_discriminators_see_almost_the_same_through_the_cache(profile: ShiftProfile, motion: NetworkMotion) -> None:
    """Rounding changes an untrained discriminator's logit far less than another set of tracks or another clip does."""
    torch.manual_seed(0)
    instantaneous, long_term = (discriminator.eval() for discriminator in new_discriminators(profile))
    packed = pack(motion, num_pairs=3)
    other = profile.motion(clip(seed=1), query_seed=3, num_tracks=20)
    with torch.inference_mode():
        exact, near, far = (
            float(long_term(t[None]))
            for t in (tokens(profile, motion), unpack_tokens(packed, profile, 0, 20), tokens(profile, other))
        )
        assert abs(near - exact) < 0.2 * abs(far - exact)
        exact, near, far = (
            float(instantaneous(maps[None])) for maps in (motion.maps, unpack_maps(packed["maps"]), other.maps)
        )
        assert abs(near - exact) < 0.2 * abs(far - exact)


# --- ready or not -------------------------------------------------------------------------------


def test_without_frozen_weights_the_error_names_the_pull(tmp_path: Path) -> None:
    for name in ("shift", "shift-wan"):
        with pytest.raises(NotReady, match="motion-reward models pull shift"):
            Pipeline.load(Settings(profile=name, models_dir=tmp_path))  # type: ignore[arg-type]


def test_missing_discriminators_name_the_training_command(profile: ShiftProfile, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=rf"motion-reward pretrain --profile shift .*--out {tmp_path}"):
        load_discriminators(profile, discriminators_file("shift", tmp_path))


OTHER_WAY_ROUND: list[tuple[Precision, Precision]] = [("fp32", "bf16"), ("bf16", "fp32")]


@pytest.mark.parametrize(("networks", "discriminators"), OTHER_WAY_ROUND)
def test_compute_settings_reach_networks_and_discriminators(
    profile: ShiftProfile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    networks: Precision,
    discriminators: Precision,
) -> None:
    told: list[tuple[str, Compute | None]] = []

    def load(models: Path, device: str, compute: Compute) -> Networks:
        told.append((device, compute))
        return dataclasses.replace(profile.networks, compute=compute)

    def load_discriminators(profile: ShiftProfile, path: Path, *, device: str) -> Discriminators:
        told.append((device, profile.discriminator_compute))
        raise NotReady("no trained discriminators")

    monkeypatch.setattr(Networks, "load", load)
    monkeypatch.setattr("reward_server.pipeline.pipeline.load_discriminators", load_discriminators)
    compute = Compute(precision=networks, memory_mib=9, compile="reduce-overhead")
    for name in ("shift", "shift-wan"):
        settings = Settings(
            profile=name,  # type: ignore[arg-type]
            models_dir=tmp_path,
            precision=networks,
            discriminator_precision=discriminators,
            pass_memory_mib=9,
            compile="reduce-overhead",
        )
        with pytest.raises(NotReady, match="no trained discriminators"):
            Pipeline.load(settings)
    assert told == [("cpu", compute), ("cpu", dataclasses.replace(compute, precision=discriminators))] * 2
    assert EmbeddedProfile().discriminator_compute is None


@pytest.fixture(scope="module")
def discriminators_path(profile: ShiftProfile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("discriminators") / "discriminators.safetensors"
    torch.manual_seed(0)
    instantaneous, long_term = (discriminator.state_dict() for discriminator in new_discriminators(profile))
    save_discriminators(path, profile=profile, version="v", instantaneous=instantaneous, long_term=long_term)
    return path


@pytest.mark.parametrize(("networks", "discriminators"), OTHER_WAY_ROUND)
def test_discriminators_score_in_their_own_precision(
    profile: ShiftProfile,
    motion: NetworkMotion,
    discriminators_path: Path,
    networks: Precision,
    discriminators: Precision,
) -> None:
    frozen = dataclasses.replace(profile.networks, compute=Compute(precision=networks))
    told = load_discriminators(
        dataclasses.replace(profile, networks=frozen, discriminator_precision=discriminators), discriminators_path
    )
    made = dtypes_made_by(told)
    seen = motion.maps[None], tokens(profile, motion)[None]
    error = (told.logits(*seen) - load_discriminators(profile, discriminators_path).logits(*seen)).abs()
    assert made == {torch.bfloat16 if discriminators == "bf16" else torch.float32}
    assert bool(((error > 0) & (error < 0.01)).all() if discriminators == "bf16" else (error == 0).all())


def test_discriminators_train_in_fp32_whatever_they_score_in(
    profile: ShiftProfile, motion: NetworkMotion, discriminators_path: Path
) -> None:
    told = load_discriminators(dataclasses.replace(profile, discriminator_precision="bf16"), discriminators_path)
    made = dtypes_made_by(told)
    seen = motion.maps[None], tokens(profile, motion)[None]
    for discriminator, plain, given in zip(
        (told.instantaneous, told.long_term), new_discriminators(profile), seen, strict=True
    ):
        plain.load_state_dict(discriminator.state_dict())
        assert torch.equal(training_logits(discriminator, given), training_logits(plain, given))
    assert made == {torch.float32}


def training_logits(discriminator: nn.Module, seen: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)  # of dropout
    logits: torch.Tensor = discriminator.train()(seen)
    return logits


def dtypes_made_by(discriminators: Discriminators) -> set[torch.dtype]:
    """The dtypes that the discriminators' layers return once they have run. Sums with a residual are always float32."""
    made: set[torch.dtype] = set()
    for part in (*discriminators.instantaneous.modules(), *discriminators.long_term.modules()):
        if isinstance(part, Linear):
            part.register_forward_hook(lambda _, __, made_now: made.add(made_now.dtype))
    return made


def test_bf16_networks_see_nearly_the_same_motion(profile: ShiftProfile, motion: NetworkMotion) -> None:
    tracker, flow_net = (copy.deepcopy(net) for net in (profile.networks.tracker, profile.networks.flow_net))
    for network in (tracker, flow_net):
        set_compute(network, Compute(precision="bf16"))
    networks = dataclasses.replace(profile.networks, tracker=tracker, flow_net=flow_net)
    near = dataclasses.replace(profile, networks=networks).motion(clip(), query_seed=3, num_tracks=20)
    assert float((near.tracks - motion.tracks).abs().max()) < 0.5  # px
    assert 0 < float((near.correlation - motion.correlation).abs().max()) < 0.05


def test_discriminators_of_other_frozen_weights_never_serve(profile: ShiftProfile, tmp_path: Path) -> None:
    instantaneous, long_term = (discriminator.state_dict() for discriminator in new_discriminators(profile))
    path = tmp_path / "discriminators.safetensors"
    save_discriminators(path, profile=profile, version="v", instantaneous=instantaneous, long_term=long_term)
    assert load_discriminators(profile, path).version == "v"
    changed = dataclasses.replace(profile.networks, digests={"cotracker3": "x", "sea_raft": "b"})
    with pytest.raises(NotReady, match="other motion features"):
        load_discriminators(dataclasses.replace(profile, networks=changed), path)


# --- rewards ------------------------------------------------------------------------------------


def test_a_group_uses_the_profiles_tracks_and_its_own_queries(profile: ShiftProfile) -> None:
    torch.manual_seed(0)
    instantaneous, long_term = (discriminator.eval() for discriminator in new_discriminators(profile))
    discriminators = Discriminators(instantaneous=instantaneous, long_term=long_term, version="v", digest="d")
    pipeline = Pipeline(profile, discriminators, Settings(profile="shift", num_tracks=16, threads=1))
    group = [submission(seed, group_id="g", run_id="r") for seed in range(2)]
    outcomes = pipeline.score_submissions(group)
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.OK] * 2
    rewards = [outcome.reward for outcome in outcomes if outcome.reward]
    assert len({reward.provenance.query_seed for reward in rewards}) == 1
    for reward, sent in zip(rewards, group, strict=True):
        alone = pipeline.score_submissions([sent])[0].reward
        assert alone is not None
        assert reward.logits.long_term == pytest.approx(alone.logits.long_term, abs=1e-4)
        assert (reward.provenance.num_tracks, reward.provenance.frames_used) == (16, 4)
        assert reward.combined == pytest.approx((reward.instantaneous + reward.long_term) / 2)
    assert Pipeline(profile, discriminators, Settings(profile="shift")).model.input.num_tracks == 1024


def submission(seed: int, **context: str) -> Submission:
    return Submission(payload=clip_to_tensor(clip(seed=seed)), media=Media.TENSOR, context=Context(**context))  # type: ignore[arg-type]


# --- the reference's checkpoints ----------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(profile: ShiftProfile, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A models folder with a SEA-RAFT, and discriminators in the layouts of SHIFT's reference code."""
    folder = tmp_path_factory.mktemp("reference")
    store(SEA_RAFT, folder, random_sea_raft().state_dict(), source="random", source_sha256="random")
    torch.manual_seed(1)
    vit, track_vit = new_discriminators(profile)
    kernel = torch.tensor([-1.0, 0.0, 1.0])
    whole = {"sobel_layer.w_h": kernel.view(1, 1, 3, 1), "sobel_layer.w_w": kernel.view(1, 1, 1, 3)}
    whole |= {f"flow_layer.model.{name}": value for name, value in random_sea_raft().state_dict().items()}
    whole |= {f"flow_vit.{name}": value for name, value in vit.state_dict().items()}
    torch.save({"discriminator_state_dict": whole, "epoch": 3}, folder / "ic.pth")
    torch.save({"discriminator_state_dict": track_vit.state_dict()}, folder / "lc.pth")
    return {"models": folder, "instantaneous": folder / "ic.pth", "long_term": folder / "lc.pth"}


def test_reference_discriminators_are_imported_bit_for_bit(
    profile: ShiftProfile, reference: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "discriminators.safetensors"
    version = import_discriminators(profile, **reference, out=out)
    discriminators = load_discriminators(profile, out)
    assert discriminators.version == version
    torch.manual_seed(1)
    for ours, theirs in zip(
        (discriminators.instantaneous, discriminators.long_term), new_discriminators(profile), strict=True
    ):
        state, expected = ours.state_dict(), theirs.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)


def test_reference_discriminators_that_do_not_fit_are_refused(
    profile: ShiftProfile, reference: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "discriminators.safetensors"
    whole = torch.load(reference["instantaneous"], weights_only=True)["discriminator_state_dict"]
    changes = {
        "another SEA-RAFT": {"flow_layer.model.cnet.bn1.running_mean": torch.zeros(64)},
        "kernel": {"sobel_layer.w_h": torch.ones(1, 1, 3, 1)},
        "has other shapes in": {"flow_vit.head.bias": torch.zeros(2)},
        "has unknown 1 entries": {"resnet.weight": torch.zeros(2)},
    }
    for message, change in changes.items():
        torch.save({"discriminator_state_dict": {**whole, **change}}, tmp_path / "ic.pth")
        with pytest.raises(BadRequest, match=message):
            import_discriminators(profile, **{**reference, "instantaneous": tmp_path / "ic.pth"}, out=out)
    with pytest.raises(BadRequest, match="long-term discriminator"):
        import_discriminators(profile, **{**reference, "long_term": reference["instantaneous"]}, out=out)
    assert not out.exists()


# --- training and the benchmark -----------------------------------------------------------------


def test_training_figures_are_the_papers_where_it_has_them() -> None:
    cache, training = configs("shift", steps=10, seed=1)
    config = training["long_term"]
    assert training == {"instantaneous": config, "long_term": config}
    assert (config.learning_rate, config.weight_decay, config.betas) == (2e-4, 1e-2, (0.9, 0.999))
    assert (config.views_per_step, config.grad_clip, config.pair_weight, config.bf16) == (6, 1.0, 0.0, True)
    assert (cache.profile, cache.num_tracks, cache.num_pairs, config.steps, config.seed) == ("shift", 512, 12, 10, 1)
    assert not config.symmetries  # a network's embedding of correlation has none


def test_embedded_is_trained_on_mirrored_motion() -> None:
    cache, training = configs("embedded", steps=7200, seed=1)
    assert cache.profile == "embedded"
    planned = {name: (config.steps, config.symmetries, config.seed) for name, config in training.items()}
    assert planned == {"instantaneous": (3600, True, 1), "long_term": (7200, True, 1)}


@pytest.mark.slow
def test_the_benchmark_alone_may_use_random_weights_and_says_so(tmp_path: Path) -> None:
    settings = Settings(profile="shift", models_dir=tmp_path, num_tracks=16, threads=1)
    with bench.weighted(settings) as (loadable, weights):
        assert weights == "random"
        assert loadable.score_timeout_s == loadable.max_stall_s == bench.HEAVY_TIMEOUT_S
        folder = loadable.models_folder
        (outcome,) = Pipeline.load(loadable).score_submissions([submission_of(8)])
        assert outcome.reward is not None, outcome.error
        assert outcome.reward.provenance.discriminator_version == "random"
        assert (outcome.reward.provenance.height_px, outcome.reward.provenance.width_px) == (320, 576)
    assert not folder.exists()
    with pytest.raises(NotReady, match="models pull shift"):
        Pipeline.load(settings)
    assert bench.RANDOM in bench.notes(bench.HEAVY, settings, "random")
    assert bench.RANDOM not in bench.notes(bench.HEAVY, settings, "given")


def submission_of(num_frames: int) -> Submission:
    frames = clip(num_frames, height=320, width=576)
    return Submission(payload=clip_to_tensor(frames), media=Media.TENSOR, context=Context())
