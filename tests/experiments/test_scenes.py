"""Tests simulated scenes: tracks against physics, geometry and the rendered pictures."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from experiments.recipe.acts import Stage, roll
from experiments.recipe.camera import CameraPath, random_path
from experiments.recipe.gl import RenderingUnavailable, import_mujoco
from experiments.recipe.render import render_all, scene_jobs
from experiments.recipe.room import build_room
from experiments.recipe.scenes import MAX_OVERLAP_M, Scene, film, render_scene, simulate
from reward_server.data.manifest import clips_of

HEIGHT, WIDTH, FOVY_DEG = 96, 128, 50.0
FOCAL_PX = HEIGHT / 2 / np.tan(np.deg2rad(FOVY_DEG) / 2)
LEVEL = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float64)  # looks along -x, y to the right, z up
FRAME = '<mujoco><option timestep="0.001"/><visual><quality shadowsize="0"/></visual>{}</mujoco>'


@pytest.fixture(scope="module")
def mujoco() -> Any:
    """MuJoCo with a renderer that works on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from PyOpenGL when it is imported
        try:
            module = import_mujoco()
            model = module.MjModel.from_xml_string("<mujoco/>")
            with module.Renderer(model, 8, 8):
                pass
        except RenderingUnavailable as error:
            pytest.skip(str(error))
        except (ImportError, AttributeError, RuntimeError) as error:
            pytest.skip(f"no off-screen OpenGL works here: {error}")
    return module


@pytest.fixture(scope="module")
def scene(mujoco: Any) -> Scene:
    return render_scene(1, 10, 12.0, HEIGHT, WIDTH)


def standing(num: int, eye: tuple[float, float, float]) -> CameraPath:
    return CameraPath(eye=np.tile(eye, (num, 1)), rotation=np.tile(LEVEL, (num, 1, 1)), fovy_deg=FOVY_DEG)


def model_of(mujoco: Any, bodies: str) -> Any:
    world = f'<worldbody><camera pos="0 0 1"/><light pos="0 0 9"/>{bodies}</worldbody>'
    return mujoco.MjModel.from_xml_string(FRAME.format(world))


def grid(step: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(step // 2, WIDTH, step), np.arange(step // 2, HEIGHT, step))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def test_a_falling_box_follows_half_g_t_squared(mujoco: Any) -> None:
    model = model_of(mujoco, '<body pos="0 0 2"><freejoint name="b"/><geom type="box" size=".5 .5 .5"/></body>')
    stage = Stage(rng=np.random.default_rng(0), num_materials=1)
    positions = simulate(model, stage, 10, 20.0)
    assert positions is not None
    falling = film(model, positions, standing(10, (4.5, 0, 1.5)), fps=20.0, height=HEIGHT, width=WIDTH)
    points = np.array([[58, 30], [64, 36], [70, 25]])
    tracks, visibility = falling.tracks(points)

    times_s = np.arange(10) / 20
    drop_px = FOCAL_PX * 0.5 * 9.81 * times_s**2 / 4.0  # the visible face is 4 m away
    expected = points[None] + np.stack([np.zeros(10), drop_px], axis=1)[:, None]
    np.testing.assert_allclose(tracks, expected, atol=0.1)  # 1 ms steps fall 0.5 g t dt too far: under 0.06 px
    np.testing.assert_array_equal(visibility, expected[..., 1] < HEIGHT - 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_balls_roll_without_slipping(mujoco: Any, seed: int) -> None:
    stage = Stage(rng=np.random.default_rng(seed), num_materials=4)
    roll(stage)
    model = build_room(stage, None)
    data = mujoco.MjData(model)
    for name, velocity in stage.velocities.items():
        first = model.joint(name).dofadr[0]
        data.qvel[first : first + 6] = velocity
    mujoco.mj_forward(model, data)
    for name in stage.velocities:
        body, moved = model.joint(name).bodyid[0], np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, moved, 0)  # spin, then velocity
        radius = model.geom_rbound[model.body(body).geomadr[0]]
        slip = moved[3:] + np.cross(moved[:3], [0, 0, -radius])
        assert np.linalg.norm(slip) < 0.01 * np.linalg.norm(moved[3:])  # the orientation is written in few digits


def test_a_point_hides_exactly_while_a_pillar_covers_it(mujoco: Any) -> None:
    bodies = (
        '<geom type="box" size=".1 .3 2" pos="1 0 0"/>'
        '<body pos="0 -2 1"><joint type="slide" axis="0 1 0"/><geom type="box" size=".4 .4 .4"/></body>'
    )
    model = model_of(mujoco, bodies)
    positions = np.linspace(0, 4, 41)[:, None]
    passing = film(model, positions, standing(41, (5, 0, 1)), fps=10.0, height=HEIGHT, width=WIDTH)
    start_px = FOCAL_PX * -2 / 4.6 + WIDTH / 2 - 0.5
    point = np.round([[start_px, HEIGHT / 2]])
    tracks, visibility = passing.tracks(point)

    y_m = (tracks[:, 0, 0] + 0.5 - WIDTH / 2) / FOCAL_PX * 4.6  # position on the box's front face, x = 0.4
    pillar_edge_m = 0.3 / 3.9 * 4.6  # the pillar's front edge, 3.9 m away, projected onto that face
    np.testing.assert_array_equal(visibility[:, 0], np.abs(y_m) > pillar_edge_m)
    assert 3 < (~visibility).sum() < 20


def test_the_sky_stays_still_for_a_camera_without_rotation(mujoco: Any) -> None:
    model = model_of(mujoco, '<geom type="box" size=".2 .2 .2" pos="0 0 1"/>')
    camera = standing(3, (5, 0, 1))
    moving = CameraPath(eye=np.array([[5, 0, 1], [5, 1, 1], [5, -1, 1.5]]), rotation=camera.rotation, fovy_deg=FOVY_DEG)
    still = film(model, np.zeros((3, 0)), moving, fps=5.0, height=HEIGHT, width=WIDTH)
    tracks, visibility = still.tracks(np.array([[5, 5]]))
    np.testing.assert_allclose(tracks, np.full((3, 1, 2), 5.0), atol=1e-4)
    assert visibility.all()


def test_points_behind_the_camera_have_no_position(mujoco: Any) -> None:
    model = model_of(mujoco, '<geom type="box" size=".2 .2 .2" pos="0 0 1"/>')
    camera = standing(2, (5, 0, 1))
    passing = CameraPath(eye=np.array([[5, 0, 1], [-5, 0, 1]]), rotation=camera.rotation, fovy_deg=FOVY_DEG)
    scene = film(model, np.zeros((2, 0)), passing, fps=5.0, height=HEIGHT, width=WIDTH)
    tracks, visibility = scene.tracks(np.array([[WIDTH // 2, HEIGHT // 2]]))
    assert visibility.tolist() == [[True], [False]]
    assert np.isnan(tracks[1]).all()


def test_rays_and_pictures_agree_on_what_each_pixel_shows(mujoco: Any, scene: Scene) -> None:
    """If the two conventions differed by half a pixel, every outline would show it."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    geoms = scene._anchors(np.stack([x.ravel(), y.ravel()], axis=1).astype(float)).geoms
    data, eye, rotation = scene._posed(0)
    data.cam_xpos[0], data.cam_xmat[0] = eye, rotation.ravel()
    with mujoco.Renderer(scene.model, HEIGHT, WIDTH) as renderer:
        renderer.enable_segmentation_rendering()
        renderer.update_scene(data, camera=0)
        drawn = renderer.render()[..., 0].ravel()
    agree = (drawn == geoms).mean()
    shifted = (np.roll(drawn, 1) == geoms).mean()
    assert agree > 0.995
    assert shifted < agree - 0.01


def test_patches_look_alike_along_tracks(scene: Scene) -> None:
    frames = [cv2.cvtColor(image.transpose(1, 2, 0), cv2.COLOR_RGB2GRAY) for image in scene.clip.frames]
    points = grid(4)
    tracks, visibility = scene.tracks(points)
    inside = ((tracks > 6) & (tracks < [WIDTH - 7, HEIGHT - 7])).all(axis=-1)
    rough = np.array([patch(frames[0], point).std() > 8 for point in points.astype(float)])
    frame = 5
    chosen = np.flatnonzero(visibility[frame] & inside[frame] & inside[0] & rough)
    along = [alike(patch(frames[0], tracks[0, n]), patch(frames[frame], tracks[frame, n])) for n in chosen]
    across = [alike(patch(frames[0], tracks[0, n]), patch(frames[frame], tracks[frame, n] + 4)) for n in chosen]
    assert len(chosen) > 60
    assert np.median(along) > 0.9
    assert np.median(across) < 0.6


def patch(image: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return cv2.getRectSubPix(image, (9, 9), (float(centre[0]), float(centre[1]))).astype(np.float64)


def alike(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum() + 1e-9))


def test_a_seed_makes_one_scene(scene: Scene) -> None:
    again = render_scene(1, 10, 12.0, HEIGHT, WIDTH)
    np.testing.assert_array_equal(again.clip.frames, scene.clip.frames)
    np.testing.assert_array_equal(again.positions, scene.positions)
    other = render_scene(2, 10, 12.0, HEIGHT, WIDTH)
    assert (other.clip.frames != scene.clip.frames).mean() > 0.5


def test_a_track_starts_at_its_query_and_is_seen_there(scene: Scene) -> None:
    points = grid(8)
    tracks, visibility = scene.tracks(points)
    np.testing.assert_allclose(tracks[0], points, atol=1e-3)
    assert visibility[0].all()


def test_queries_of_another_shape_are_refused(scene: Scene) -> None:
    with pytest.raises(ValueError, match=r"points must be \[N,2\]"):
        scene.tracks(np.zeros((3, 3)))


def test_an_unstable_simulation_is_no_scene(mujoco: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo resets an unstable simulation to its start. Bodies would jump, and a log file would appear."""
    monkeypatch.chdir(tmp_path)
    model = model_of(mujoco, '<body><freejoint name="b"/><geom type="box" size=".1 .1 .1"/></body>')
    stage = Stage(rng=np.random.default_rng(0), num_materials=1)
    stage.velocities["b"] = np.full(6, 1e11)
    assert simulate(model, stage, 4, 10.0) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [3, 4])
def test_bodies_do_not_overlap_at_the_start_and_something_moves(mujoco: Any, seed: int) -> None:
    made = render_scene(seed, 8, 10.0, 32, 32)
    data, _, _ = made._posed(0)
    assert data.contact.dist[: data.ncon].min(initial=0) >= MAX_OVERLAP_M
    assert np.isfinite(made.positions).all()
    assert np.abs(np.diff(made.positions, axis=0)).max() > 1e-3


def test_rendering_fills_a_folder_once(mujoco: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    jobs = scene_jobs(out, num=3, seed=0, frames=8, photos=None)
    entries = list(render_all(out, jobs, processes=2))
    assert sorted(e.path.name for e in entries) == sorted(job.path.name for job in jobs)
    assert sorted(clips_of(out), key=lambda e: e.path) == sorted(entries, key=lambda e: e.path)
    assert {len(frames_of(e.path)) for e in entries} == {8}

    kept = jobs[0].path.stat().st_mtime_ns
    jobs[1].path.unlink()
    assert len(list(render_all(out, jobs, processes=1))) == 3
    assert jobs[0].path.stat().st_mtime_ns == kept
    assert len(clips_of(out)) == 3

    assert len(list(render_all(out, scene_jobs(out, num=1, seed=7, frames=8, photos=None), processes=1))) == 1
    assert len(clips_of(out)) == 4  # entries of other seeds stay


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_without_opengl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
    with pytest.raises(RenderingUnavailable, match="apt-get install libosmesa6"):
        import_mujoco()


@pytest.mark.parametrize("seed", range(20))
def test_cameras_turn_rigidly_and_smoothly(seed: int) -> None:
    subject = np.stack([np.linspace(-1, 1, 24), np.zeros(24), np.full(24, 0.5)], axis=1)
    path = random_path(np.random.default_rng(seed), 24, 12.0, subject)
    gram = path.rotation @ path.rotation.transpose(0, 2, 1)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(path.rotation), 1, atol=1e-12)
    speed_up = np.abs(np.diff(path.eye, n=2, axis=0)).max() * 12**2
    assert speed_up < 8  # m/s^2; a jump of 0.1 m would be 14
