"""Renders random physically simulated scenes with exact tracks, as an unlimited supply of correct motion.

One seed makes one scene: a room with textured bodies that fall, roll, collide, swing or are driven (`acts.py`), lights,
and a camera path (`camera.py`). MuJoCo simulates and renders it. Tracks come from geometry alone. A ray through the
query hits a geom. The point moves with that geom. A ray from the camera to the point decides whether it is visible.
Legend: T frames, N points, G geoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.recipe.acts import ACTS, Stage
from experiments.recipe.camera import CameraPath, random_path
from experiments.recipe.gl import import_mujoco
from experiments.recipe.room import MAX_STEP_S, build_room
from protos.types import Clip

Array = NDArray[np.float64]

MAX_DRAWS = 40
MAX_OVERLAP_M = -1e-3  # limit of a contact's signed distance
STAGE_RADIUS_M = 2.5
MIN_GAP_M = 0.4
MAX_THING_M = 2.0  # largest bounding radius of a body or prop; walls are larger
MIN_EYE_HEIGHT_M = 0.15
MIN_SPEED_M_S = 0.15
SAME_SURFACE = 1e-3  # a ray that ends short of a point by more than this share of its length does not see it


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A rendered clip and its simulation. `positions` [T,nq] are MuJoCo's generalised positions."""

    clip: Clip
    model: Any
    positions: Array
    camera: CameraPath

    def tracks(self, points: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Follow points [N,2] (x, y) of the first frame exactly.

        Returns tracks [T,N,2] in pixels, where integers are pixel centres, and visibility [T,N]. Points on the sky are
        infinitely far away. Behind the camera, a track is NaN and invisible. Raises ValueError for another shape.
        """
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points must be [N,2] (x, y), got {list(points.shape)}; reshape them")
        anchors = self._anchors(points.astype(np.float64))
        pairs = [self._project(frame, anchors) for frame in range(len(self.positions))]
        tracks, visibility = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return tracks.astype(np.float32), visibility

    def _anchors(self, points: Array) -> _Anchors:
        """The points where rays through pixels of the first frame end, in the frames of the geoms that they hit."""
        data, eye, rotation = self._posed(0)
        height, width = self.clip.frames.shape[2:]
        across = (points + 0.5 - [width / 2, height / 2]) / self._focal_px
        rays = np.stack([across[:, 0], -across[:, 1], -np.ones(len(points))], axis=1) @ rotation.T
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        geoms, distances = self._cast(data, eye, rays)
        world = eye + distances[:, None] * rays
        frames = data.geom_xmat.reshape(-1, 3, 3)[geoms]
        local = np.einsum("nji,nj->ni", frames, world - data.geom_xpos[geoms])
        sky = geoms < 0
        return _Anchors(geoms=geoms, local=np.where(sky[:, None], rays, local), sky=sky)

    def _project(self, frame: int, anchors: _Anchors) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels [N,2] and visibility [N] of the anchors in a frame."""
        data, eye, rotation = self._posed(frame)
        frames = data.geom_xmat.reshape(-1, 3, 3)[anchors.geoms]
        world = np.einsum("nij,nj->ni", frames, anchors.local) + data.geom_xpos[anchors.geoms]
        offset = np.where(anchors.sky[:, None], anchors.local, world - eye)
        right, up, backward = (offset @ rotation).T
        depth = np.where(backward < 0, -backward, np.nan)
        height, width = self.clip.frames.shape[2:]
        x = self._focal_px * right / depth + width / 2 - 0.5
        y = -self._focal_px * up / depth + height / 2 - 0.5
        inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        length = np.linalg.norm(offset, axis=1)
        hit, distance = self._cast(data, eye, offset / length[:, None])
        seen = np.where(anchors.sky, hit < 0, (hit == anchors.geoms) & (distance > length * (1 - SAME_SURFACE)))
        return np.stack([x, y], axis=1), inside & seen

    def _cast(self, data: Any, eye: Array, rays: Array) -> tuple[NDArray[np.int32], Array]:
        """The first geom [N] that each unit ray [N,3] hits, -1 for none, and the distance [N]."""
        mujoco = import_mujoco()
        geoms, distances = np.full(len(rays), -1, np.int32), np.full(len(rays), -1.0)
        far = mujoco.mjMAXVAL
        mujoco.mj_multiRay(self.model, data, eye, rays.ravel(), None, 1, -1, geoms, distances, None, len(rays), far)
        return geoms, distances

    def _posed(self, frame: int) -> tuple[Any, Array, Array]:
        mujoco = import_mujoco()
        data = mujoco.MjData(self.model)
        data.qpos[:] = self.positions[frame]
        mujoco.mj_forward(self.model, data)
        return data, self.camera.eye[frame], self.camera.rotation[frame]

    @property
    def _focal_px(self) -> float:
        return float(self.clip.frames.shape[2] / 2 / np.tan(np.deg2rad(self.camera.fovy_deg) / 2))


@dataclass(frozen=True, kw_only=True)
class _Anchors:
    """Tracked surface points: their geom [N] and position in it [N,3]. On the sky, a world direction instead."""

    geoms: NDArray[np.int32]
    local: Array
    sky: NDArray[np.bool_]


def render_scene(seed: int, frames: int, fps: float, height: int, width: int, *, photos: Sequence[Path] = ()) -> Scene:
    """The scene of a seed, the same for the same arguments on the same OpenGL.

    If bodies overlap at the start or come too near the camera, or if nothing moves, it draws again from the same random
    stream. Raises RenderingUnavailable without MuJoCo or off-screen OpenGL.
    """
    rng = np.random.default_rng(seed)
    for _ in range(MAX_DRAWS):
        stage = _random_stage(rng)
        model = build_room(stage, photos)
        positions = simulate(model, stage, frames, fps)
        if positions is None:
            continue
        things = _things(model, positions)
        camera = random_path(rng, frames, fps, _liveliest(things))
        if _is_worth_watching(things, camera, frames / fps):
            return film(model, positions, camera, fps=fps, height=height, width=width)
    # Cannot happen unless the random ranges are wrong.
    raise RuntimeError(f"seed {seed}: no scene worth watching in {MAX_DRAWS} draws; use another seed")


def film(model: Any, positions: Array, camera: CameraPath, *, fps: float, height: int, width: int) -> Scene:
    """Render positions [T,nq] of a model, with its camera 0 moved along the path."""
    mujoco = import_mujoco()
    model.cam_fovy[0] = camera.fovy_deg
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height  # a larger buffer would only cost time
    data = mujoco.MjData(model)
    frames = np.empty((len(positions), 3, height, width), np.uint8)
    with mujoco.Renderer(model, height, width) as renderer:
        for index, position in enumerate(positions):
            data.qpos[:] = position
            mujoco.mj_forward(model, data)
            data.cam_xpos[0], data.cam_xmat[0] = camera.eye[index], camera.rotation[index].ravel()
            renderer.update_scene(data, camera=0)
            frames[index] = renderer.render().transpose(2, 0, 1)
    return Scene(clip=Clip(frames=frames, fps=fps), model=model, positions=positions, camera=camera)


def _random_stage(rng: np.random.Generator) -> Stage:
    """A stage with one to three acts around the middle."""
    stage = Stage(rng=rng, num_materials=int(rng.integers(4, 8)))
    num = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    turn = rng.uniform(0, 2 * np.pi)
    for index, act in enumerate(rng.choice(len(ACTS), num, replace=False)):
        angle = turn + index * 2 * np.pi / num
        stage.place = np.array([np.cos(angle), np.sin(angle)]) * (0 if num == 1 else 1.1)
        ACTS[act](stage)
    return stage


def simulate(model: Any, stage: Stage, frames: int, fps: float) -> Array | None:
    """Simulate generalised positions [T,nq] from the start of the acts, one every 1/fps seconds.

    None if MuJoCo warns: it resets an unstable simulation to its start, which would show as a jump.
    """
    mujoco = import_mujoco()
    num_steps = int(np.ceil(1 / fps / MAX_STEP_S))
    model.opt.timestep = 1 / fps / num_steps
    data = mujoco.MjData(model)
    _start(model, data, stage)
    mujoco.set_mju_user_warning(lambda _: None)  # by default MuJoCo writes a file into the working directory
    positions = [data.qpos.copy()]
    for _ in range(frames - 1):
        for _ in range(num_steps):
            data.ctrl[:] = [drive.at(data.time) for drive in stage.drives]
            mujoco.mj_step(model, data)
        positions.append(data.qpos.copy())
    return None if data.warning.number.any() else np.stack(positions)


def _start(model: Any, data: Any, stage: Stage) -> None:
    """Give free bodies their velocities, and driven joints the state that their drives start with."""
    for name, velocity in stage.velocities.items():
        first = model.joint(name).dofadr[0]
        data.qvel[first : first + 6] = velocity
    for drive in stage.drives:
        joint = model.joint(drive.joint)
        if not drive.is_speed:
            data.qpos[joint.qposadr[0]] = drive.at(0)
        data.qvel[joint.dofadr[0]] = drive.at(0) if drive.is_speed else drive.slope_at(0)


@dataclass(frozen=True, kw_only=True)
class _Things:
    """Bodies and props, without ground and walls: centres [T,G,3] and bounding radii [G]."""

    centres: Array
    radii: Array
    overlap_m: float  # smallest contact distance in the first frame; negative if bodies overlap


def _things(model: Any, positions: Array) -> _Things:
    mujoco = import_mujoco()
    data = mujoco.MjData(model)
    chosen = (model.geom_rbound > 0) & (model.geom_rbound < MAX_THING_M)
    centres = []
    for position in positions:
        data.qpos[:] = position
        mujoco.mj_kinematics(model, data)
        centres.append(data.geom_xpos[chosen])
    data.qpos[:] = positions[0]
    mujoco.mj_forward(model, data)
    overlap_m = float(data.contact.dist[: data.ncon].min(initial=0.0))
    return _Things(centres=np.stack(centres), radii=model.geom_rbound[chosen], overlap_m=overlap_m)


def _liveliest(things: _Things) -> Array:
    """The path [T,3] of the thing that moves farthest without leaving the stage."""
    length = np.linalg.norm(np.diff(things.centres, axis=0), axis=-1).sum(axis=0)
    strays = np.linalg.norm(things.centres[..., :2], axis=-1).max(axis=0) > STAGE_RADIUS_M
    return np.asarray(things.centres[:, np.where(strays, -1, length).argmax()])


def _is_worth_watching(things: _Things, camera: CameraPath, duration_s: float) -> bool:
    """Whether nothing overlaps at the start, nothing comes too near the eye, and something moves in view."""
    gaps = np.linalg.norm(things.centres - camera.eye[:, None], axis=-1) - things.radii
    if things.overlap_m < MAX_OVERLAP_M or not gaps.min() > MIN_GAP_M or camera.eye[:, 2].min() < MIN_EYE_HEIGHT_M:
        return False
    relative = np.einsum("tji,tgj->tgi", camera.rotation, things.centres - camera.eye[:, None])
    reach = np.abs(relative[..., :2]).max(axis=-1)
    in_sight = reach < -relative[..., 2] * np.tan(np.deg2rad(camera.fovy_deg) / 2)
    speed = np.linalg.norm(np.diff(things.centres, axis=0), axis=-1).sum(axis=0) / duration_s
    return bool((speed[in_sight.mean(axis=0) > 0.6] > MIN_SPEED_M_S).any())
