"""Builds the room around a scene's acts as a MuJoCo model: ground, walls, props, lights, sky and all textures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from experiments.recipe.acts import Stage
from experiments.recipe.gl import import_mujoco
from experiments.recipe.textures import random_texture

MAX_STEP_S = 0.001
GROUND_M = 9.0


def build_room(stage: Stage, photos: Sequence[Path] = ()) -> Any:
    """The MuJoCo model of a stage's bodies in a random room. Camera 0 is placed later, along its path."""
    rng = stage.rng
    names = [*(f"body{index}" for index in range(stage.num_materials)), "ground", "wall"]
    assets = {f"{name}.png": _png(rng, photos) for name in names}
    bounce = f"{rng.uniform(1.0e4, 3.0e4):.0f}"  # stiffness and damping of contacts, per unit of mass
    damping = f"{2 * rng.uniform(0.08, 0.6) * np.sqrt(float(bounce)):.1f}"
    scale = rng.uniform(0.8, 3.0)  # size of the room: in a larger one, motion looks slower, so gravity is weaker
    xml = f"""
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{MAX_STEP_S}" gravity="0 0 {-9.81 / scale:.4f}" integrator="implicitfast"/>
  <statistic center="0 0 0.5" extent="3"/>
  <visual>
    <quality shadowsize="2048" offsamples="4" numslices="48" numstacks="32"/>
    <map znear="0.01" zfar="20"/>
    <headlight ambient="{_grey(rng, 0.25, 0.45)}" diffuse="{_grey(rng, 0.1, 0.4)}" specular="0 0 0"/>
  </visual>
  <default>
    <geom solref="-{bounce} -{damping}" friction="{rng.uniform(0.15, 0.9):.3f} 0.005 0.0005" condim="4" density="400"/>
  </default>
  <asset>
    {_sky(rng)}
    {"".join(_material(name, rng) for name in names)}
  </asset>
  <worldbody>
    <camera name="eye" pos="0 0 3"/>
    {_lights(rng)}
    <geom type="plane" size="{GROUND_M} {GROUND_M} 1" material="ground"/>
    {_walls(rng)}
    {_props(rng)}
    {"".join(stage.bodies)}
  </worldbody>
  <actuator>{"".join(stage.actuators)}</actuator>
</mujoco>"""
    return import_mujoco().MjModel.from_xml_string(xml, assets=assets)


def _png(rng: np.random.Generator, photos: Sequence[Path]) -> bytes:
    _, encoded = cv2.imencode(".png", random_texture(rng, photos)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return encoded.tobytes()


def _material(name: str, rng: np.random.Generator) -> str:
    """XML of a material. Bodies are wrapped in one picture; ground and walls are tiled with one."""
    shine = f'specular="{rng.uniform(0, 0.3):.2f}" shininess="{rng.uniform(0.1, 0.6):.2f}"'
    if name.startswith("body"):
        return (
            f'<texture name="{name}" type="cube" file="{name}.png" gridsize="1 1"/>'
            f'<material name="{name}" texture="{name}" {shine}/>'
        )
    repeat = rng.uniform(3, 7) if name == "ground" else rng.uniform(1, 2.5)
    return (
        f'<texture name="{name}" type="2d" file="{name}.png"/>'
        f'<material name="{name}" texture="{name}" texrepeat="{repeat:.2f} {repeat:.2f}" specular="0"/>'
    )


def _sky(rng: np.random.Generator) -> str:
    top, low = rng.uniform(0.2, 0.8, 3), rng.uniform(0.5, 1.0, 3)
    return (
        f'<texture type="skybox" builtin="gradient" rgb1="{_numbers(top)}" rgb2="{_numbers(low)}" '
        'width="128" height="768"/>'
    )


def _lights(rng: np.random.Generator) -> str:
    """XML of a sun or a lamp, with shadows half of the time, and sometimes a second lamp without shadows."""
    tint = rng.uniform(0.85, 1.0, 3) * rng.uniform(0.4, 0.7)
    shadow = "true" if rng.random() < 0.5 else "false"
    sun = f'<light pos="0 0 6" dir="{_numbers([*rng.uniform(-0.7, 0.7, 2), -1])}" type="directional" '
    lamp = f'<light pos="{_numbers([*rng.uniform(-3, 3, 2), 5])}" dir="0 0 -1" type="spot" cutoff="80" exponent="1" '
    first = (sun if rng.random() < 0.7 else lamp) + f'diffuse="{_numbers(tint)}" castshadow="{shadow}"/>'
    second = lamp + f'diffuse="{_grey(rng, 0.1, 0.3)}" castshadow="false"/>'
    return first + (second if rng.random() < 0.4 else "")


def _walls(rng: np.random.Generator) -> str:
    """XML of up to four walls, well behind every camera."""
    distance, height = rng.uniform(6.0, 8.5), rng.uniform(1.0, 4.0)
    sides = rng.permutation(4)[: rng.integers(0, 5)]
    return "".join(
        f'<geom type="box" size="0.1 {distance} {height}" material="wall" euler="0 0 {side * np.pi / 2}" '
        f'pos="{_numbers([distance * np.cos(side * np.pi / 2), distance * np.sin(side * np.pi / 2), height])}"/>'
        for side in sides
    )


def _props(rng: np.random.Generator) -> str:
    """XML of boxes and pillars that stand outside the acts and within the camera's view."""
    props = []
    for angle in rng.uniform(0, 2 * np.pi, rng.integers(0, 5)):
        radius, size = rng.uniform(2.3, 2.9), rng.uniform(0.12, 0.4, 3)
        shape, height = rng.choice(["box", "cylinder"]), size[2] * rng.uniform(1, 3)
        dimensions = [size[0], size[1], height] if shape == "box" else [size[0], height]
        place = [radius * np.cos(angle), radius * np.sin(angle), height]
        props.append(
            f'<geom type="{shape}" size="{_numbers(dimensions)}" pos="{_numbers(place)}" '
            f'euler="0 0 {angle}" material="body{rng.integers(3)}"/>'
        )
    return "".join(props)


def _grey(rng: np.random.Generator, low: float, high: float) -> str:
    return " ".join([f"{rng.uniform(low, high):.3f}"] * 3)


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{value:.5g}" for value in values)
