"""Tests the recipe's data: catalogue, manifest, packages read from real archives, jobs of scenes."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.recipe.__main__ import app
from experiments.recipe.catalogue import CAMERA, PHOTOS
from experiments.recipe.generated import generated_clips
from experiments.recipe.media import Media, Package
from experiments.recipe.packages import PackageUnavailable, WrongDigest, fetch_available, fetch_clips, unpacked
from experiments.recipe.render import PhotographMissing, scene_jobs
from experiments.recipe.repositories import repository_clips
from experiments.recipe.textures import SIDE_PX, random_texture
from experiments.recipe.video import write_video
from reward_server.data.manifest import NAME, Entry, clips_of, write_manifest
from reward_server.errors import BadRequest

PACKAGE = Package(client="npm", name="made-here", version="1", licence="MIT")


def picture(seed: int = 0, height: int = 300, width: int = 400) -> np.ndarray:
    """An RGB picture of smooth random colours with detail."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.random((n, n, 3)), (width, height), interpolation=cv2.INTER_CUBIC) for n in (5, 20, 60)]
    return np.clip(sum(layers) / 3 * 255, 0, 255).astype(np.uint8)


def read(path: Path, layout: str = "rgb24") -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format=layout) for frame in container.decode(video=0)])


def media(content: bytes, member: str, **fields: object) -> Media:
    digest = hashlib.sha256(content).hexdigest()
    made = Media(source="made", package=PACKAGE, member=member, split="train", sha256=digest, shots=((0, 3),))
    return replace(made, **fields)


# The catalogue


def test_sources_and_digests_are_unique_and_whole() -> None:
    everything = [*CAMERA, *PHOTOS]
    assert len({item.source for item in everything}) == len(everything)
    assert len({item.sha256 for item in everything}) == len(everything)
    assert all(re.fullmatch(r"[0-9a-f]{64}", item.sha256) for item in everything)


def test_generated_clips_are_whole_and_of_many_generators(tmp_path: Path) -> None:
    clips = generated_clips()
    assert len({item.source for item in clips}) == len({item.sha256 for item in clips}) == len(clips)
    assert all(re.fullmatch(r"[0-9a-f]{64}", item.sha256) and item.package.licence for item in clips)
    assert len({item.generator for item in clips}) >= 30
    clip = replace(media(b"made", "made/a.webp"), source="a", generator="Model 1")
    put(tmp_path, "made/a.webp", b"made")
    (entry,) = fetch_clips(tmp_path, [clip])
    assert (entry.source, entry.kind, entry.path) == ("Model 1", "generated", tmp_path / "generated" / "a.webp")


def test_clips_of_repositories_are_whole_and_new() -> None:
    clips = repository_clips()
    assert len({item.source for item in [*clips, *CAMERA]}) == len(clips) + len(CAMERA)
    assert len({item.sha256 for item in [*clips, *CAMERA]}) == len(clips) + len(CAMERA)
    assert all(re.fullmatch(r"[0-9a-f]{64}", item.sha256) and item.package.licence for item in clips)
    assert all(re.fullmatch(r"[0-9a-f]{40}", item.package.version) for item in clips)
    assert len({item.unit for item in clips}) >= 25
    for item in clips:
        edges = [edge for shot in item.shots for edge in shot]
        assert edges == sorted(edges), item.source


@pytest.mark.parametrize(("table", "most"), [(CAMERA, 0.65), (PHOTOS, 0.35)], ids=["camera", "photos"])
def test_enough_sources_are_held_out_and_enough_left(table: tuple[Media, ...], most: float) -> None:
    share = sum(item.split == "held_out" for item in table) / len(table)
    assert 0.2 <= share <= most


def test_shots_are_in_order_and_do_not_overlap() -> None:
    for item in CAMERA:
        edges = [edge for shot in item.shots for edge in shot]
        assert edges == sorted(edges), item.source
        assert all(last - first >= 24 for first, last in item.shots), item.source


# The manifest


def entry(folder: Path, **fields: object) -> Entry:
    made = Entry(source="s", path=folder / "a" / "b.mp4", first=2, last=9, split="train", kind="camera", licence="MIT")
    return replace(made, **fields)


def test_a_manifest_gives_back_what_was_written(tmp_path: Path) -> None:
    entries = [entry(tmp_path), entry(tmp_path, source="t", split="held_out", kind="scene")]
    write_manifest(tmp_path / NAME, entries)
    assert clips_of(tmp_path) == entries
    assert clips_of(tmp_path / NAME) == entries


def test_a_manifest_moves_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_manifest(tmp_path / "old" / NAME, [entry(tmp_path / "old")])
    (tmp_path / "old").rename(tmp_path / "new")
    assert clips_of(tmp_path / "new") == [entry(tmp_path / "new")]


@pytest.mark.parametrize(("first", "last"), [(5, 5), (6, 5), (-1, 5)])
def test_an_empty_shot_is_refused(tmp_path: Path, first: int, last: int) -> None:
    with pytest.raises(BadRequest, match=f"frames {first}..{last} are not a clip"):
        entry(tmp_path, first=first, last=last)


# Packages: read from files that lie where a fetched package would be


def put(folder: Path, member: str, content: bytes) -> None:
    path = folder / "packages" / PACKAGE.name / member
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_zipped_clip_is_unzipped_and_listed(tmp_path: Path) -> None:
    put(tmp_path, "package/clip.mp4.gz", gzip.compress(b"a clip"))
    entries = fetch_clips(tmp_path, [media(b"a clip", "package/clip.mp4.gz")])
    assert entries == clips_of(tmp_path)
    assert [(e.source, e.first, e.last, e.split, e.licence) for e in entries] == [("made", 0, 3, "train", "MIT")]
    assert entries[0].path == tmp_path / "camera" / "made.mp4"
    assert entries[0].path.read_bytes() == b"a clip"


def test_a_file_that_is_not_the_recipes_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "package/clip.mp4", b"another clip")
    with pytest.raises(WrongDigest, match=r"npm package made-here 1: package/clip.mp4 has SHA-256"):
        fetch_clips(tmp_path, [media(b"a clip", "package/clip.mp4")])
    assert not (tmp_path / "camera" / "made.mp4").exists()


def test_a_file_appears_only_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "package/clip.mp4", b"a clip")
    target = tmp_path / "camera" / "made.mp4"
    whole = Path.write_bytes

    def cut_off(path: Path, data: bytes) -> int:
        whole(path, data[:3])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(OSError, match="No space"):
        fetch_clips(tmp_path, [media(b"a clip", "package/clip.mp4")])
    assert not target.exists()
    monkeypatch.undo()
    fetch_clips(tmp_path, [media(b"a clip", "package/clip.mp4")])
    assert target.read_bytes() == b"a clip"
    assert [file.name for file in target.parent.iterdir()] == ["made.mp4"]


def test_a_package_without_the_file_is_named(tmp_path: Path) -> None:
    put(tmp_path, "package/clip.mp4", b"a clip")
    with pytest.raises(PackageUnavailable, match=r"made-here 1 holds no package/other.mp4"):
        fetch_clips(tmp_path, [media(b"a clip", "package/other.mp4")])


def test_an_image_sequence_becomes_a_video_in_name_order(tmp_path: Path) -> None:
    images = [cv2.cvtColor(picture(seed, 48, 64), cv2.COLOR_RGB2GRAY) for seed in range(3)]
    contents = [cv2.imencode(".pgm", image)[1].tobytes() for image in images]
    for index in (2, 0, 1):
        put(tmp_path, f"images/i{index:02d}.pgm", contents[index])
    (listed,) = fetch_clips(tmp_path, [media(b"".join(contents), "images/i*.pgm")])
    np.testing.assert_array_equal(read(listed.path, "gray"), np.stack(images))


def test_photographs_are_kept_but_are_not_clips(tmp_path: Path) -> None:
    put(tmp_path, "p.png", b"a photo")
    assert fetch_clips(tmp_path, [media(b"a photo", "p.png", shots=())]) == []
    assert (tmp_path / "photos" / "made.png").read_bytes() == b"a photo"


@pytest.mark.parametrize(("client", "program"), [("npm", "npm"), ("apt", "apt-get"), ("git", "git")])
def test_a_missing_client_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str, program: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageUnavailable, match=rf"{client} \w+ made-here 1 needs the program '{program}'"):
        unpacked(replace(PACKAGE, client=client), tmp_path)
    assert not (tmp_path / "made-here").exists()


def test_a_failing_clients_message_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PackageUnavailable, match=r"pip package made-here 1: .* failed with exit status"):
        unpacked(replace(PACKAGE, client="pip"), tmp_path)


# Repositories: fetched with git from a repository made here


def committed(folder: Path, files: dict[str, bytes]) -> str:
    """Make a repository of these files in `folder`. Returns its commit."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    git = ["git", "-C", str(folder), "-c", "user.name=made here", "-c", "user.email=made@here.invalid"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "clips"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A repository that git finds in place of GitHub's."""
    config = tmp_path / "gitconfig"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    commit = committed(tmp_path / "upstream", {"clips/a.mp4": b"clip a", "clips/b.mp4": b"clip b", "big.bin": b"large"})
    config.write_text(
        f'[url "file://{tmp_path}/upstream"]\n\tinsteadOf = https://github.com/made/here\n'
        "[uploadpack]\n\tallowFilter = true\n\tallowAnySHA1InWant = true\n"
    )
    return Package(client="git", name="made/here", version=commit, licence="MIT")


def test_a_clip_of_a_repository_is_fetched_without_the_others(tmp_path: Path, repository: Package) -> None:
    clip = media(b"clip a", "clips/a.mp4", package=repository, scene="room")
    (listed,) = fetch_clips(tmp_path / "data", [clip])
    assert (listed.source, listed.licence, listed.path.read_bytes()) == ("room", "MIT", b"clip a")
    folder = tmp_path / "data" / "packages" / repository.folder
    objects = ["git", "-C", str(folder), "rev-list", "--objects", "--missing=print", repository.version]
    missing = subprocess.run(objects, check=True, capture_output=True, text=True).stdout.count("?")
    assert missing == 2
    (tmp_path / "upstream").rename(tmp_path / "gone")
    assert fetch_clips(tmp_path / "data", [clip]) == [listed]


def test_clips_that_cannot_be_fetched_are_named_and_left_out(tmp_path: Path, repository: Package) -> None:
    gone = replace(repository, name="made/gone", version="0" * 40)
    (tmp_path / "nowhere").mkdir()
    with (tmp_path / "gitconfig").open("a") as config:
        config.write(f'[url "file://{tmp_path}/nowhere"]\n\tinsteadOf = https://github.com/made/gone\n')
    wanted = [
        media(b"clip a", "clips/a.mp4", package=repository, source="a"),
        media(b"clip c", "clips/c.mp4", package=repository, source="c"),
        media(b"clip d", "clips/d.mp4", package=gone, source="d"),
    ]
    listed, reasons = fetch_available(tmp_path / "data", wanted)
    assert [entry.source for entry in listed] == ["a"]
    assert len(reasons) == 2
    assert "clips/c.mp4" in reasons[0]
    assert "git repository made/gone" in reasons[1]
    listed, reasons = fetch_available(tmp_path / "data", [wanted[2], replace(wanted[2], source="e")])
    assert listed == []
    assert len(reasons) == 1  # a repository is tried once
    assert not (tmp_path / "data" / NAME).exists()


def test_without_git_the_command_names_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(app, ["repositories", "--out", str(tmp_path / "data")])
    assert done.exit_code == 0
    assert done.stderr.count("left out: git repository") == len({item.package for item in repository_clips()})
    assert "0 shots of 0 camera clips" in done.stdout


def test_a_commit_that_moved_on_is_fetched_anew(tmp_path: Path, repository: Package) -> None:
    fetch_clips(tmp_path / "data", [media(b"clip a", "clips/a.mp4", package=repository)])
    later = replace(repository, version=committed(tmp_path / "upstream", {"clips/a.mp4": b"another a"}))
    fetch_clips(tmp_path / "data", [media(b"another a", "clips/a.mp4", package=later, source="later")])


def test_a_clip_that_is_not_the_recipes_is_never_left_out_silently(tmp_path: Path, repository: Package) -> None:
    with pytest.raises(WrongDigest, match="git repository made/here"):
        fetch_available(tmp_path, [media(b"another", "clips/a.mp4", package=repository)])


# Videos and textures


def test_a_video_is_reproducible_and_close_to_its_frames(tmp_path: Path) -> None:
    grey = [picture(seed, 32, 48).mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype(np.uint8) for seed in range(4)]
    for name in ("a.mp4", "b.mp4"):
        assert write_video(tmp_path / name, grey, 12.0) == 4
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert np.abs(read(tmp_path / "a.mp4").astype(int) - np.stack(grey)).mean() < 3


@pytest.mark.parametrize("seed", range(12))
def test_textures_have_detail_everywhere(seed: int) -> None:
    texture = random_texture(np.random.default_rng(seed))
    assert texture.shape == (SIDE_PX, SIDE_PX, 3)
    tiles = texture.mean(axis=-1).reshape(4, SIDE_PX // 4, 4, SIDE_PX // 4).std(axis=(1, 3))
    assert tiles.min() > 2


# Jobs of scenes; test_scenes.py renders them


def test_held_out_scenes_use_only_held_out_photographs(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for item in PHOTOS:
        (folder / f"{item.source}.png").touch()
    splits = {item.source: item.split for item in PHOTOS}
    worn = defaultdict(set)
    for job in scene_jobs(tmp_path, num=12, seed=0, frames=8, photos=folder):
        worn[job.split] |= {splits[photo.stem] for photo in job.photos}
    assert worn == {"train": {"train"}, "held_out": {"held_out"}}


def test_a_missing_photograph_ends_the_command_with_its_name(tmp_path: Path) -> None:
    missing = next(item.source for item in PHOTOS if item.split == "held_out")
    with pytest.raises(PhotographMissing, match=missing):
        scene_jobs(tmp_path, num=1, seed=0, frames=8, photos=tmp_path)
    done = CliRunner().invoke(app, ["scenes", "--out", str(tmp_path / "o"), "--photos", str(tmp_path)])
    assert done.exit_code == 1
    assert missing in done.output
