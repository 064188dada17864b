"""Defines the acts of a simulated scene: bodies and how they start, written as MuJoCo XML.

An act is a group of bodies around a place on the ground: falling, rolling, sliding, thrown, swinging or driven. A
scene plays one to three acts at once. Units: metres, seconds, radians.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]
SHAPES = ("box", "sphere", "capsule", "ellipsoid", "cylinder")


@dataclass(frozen=True, kw_only=True)
class Drive:
    """The target of an actuator's joint: amplitude * sin(frequency * t + phase), as an angle or a speed."""

    joint: str
    amplitude: float
    frequency: float = 0.0
    phase: float = np.pi / 2
    is_speed: bool = False

    def at(self, time_s: float) -> float:
        """The target at a time."""
        return float(self.amplitude * np.sin(self.frequency * time_s + self.phase))

    def slope_at(self, time_s: float) -> float:
        """The target's rate of change at a time."""
        return float(self.amplitude * self.frequency * np.cos(self.frequency * time_s + self.phase))


@dataclass(kw_only=True)
class Stage:
    """The XML of a scene while it is written. `place` is the centre [x, y] of the current act."""

    rng: np.random.Generator
    num_materials: int
    place: Vector = field(default_factory=lambda: np.zeros(2))
    bodies: list[str] = field(default_factory=list)
    actuators: list[str] = field(default_factory=list)
    velocities: dict[str, Vector] = field(default_factory=dict)  # by free joint: v, and spin in the axes of the body
    drives: list[Drive] = field(default_factory=list)  # one per actuator, in the same order
    num_names: int = 0

    def name(self, kind: str) -> str:
        """A new name that starts with `kind`."""
        self.num_names += 1
        return f"{kind}{self.num_names}"

    def material(self) -> str:
        """The name of a random body material."""
        return f"body{self.rng.integers(self.num_materials)}"

    def geom(self, shape: str, size: Sequence[float], attributes: str = "") -> str:
        """XML of a geom with a random material."""
        return f'<geom type="{shape}" size="{_text(size)}" material="{self.material()}" {attributes}/>'

    def free_body(self, shape: str, size: Sequence[float], position: Vector, *, velocity: Vector, turned: bool) -> None:
        """Add a freely moving body. `turned` gives it a random orientation.

        `velocity` is [6] as in `velocities`, but in the axes of the scene, also the spin.
        """
        joint = self.name("free")
        quaternion = self.rng.normal(size=4) if turned else np.array([1.0, 0, 0, 0])
        own_spin = Rotation.from_quat(np.roll(quaternion, -1)).inv().apply(velocity[3:])  # MuJoCo's w comes first
        self.velocities[joint] = np.concatenate([velocity[:3], own_spin])
        self.bodies.append(
            f'<body pos="{_text(position)}" quat="{_text(quaternion)}"><freejoint name="{joint}"/>'
            f"{self.geom(shape, size)}</body>"
        )

    def turn_steadily(self, joint: str, speed: float) -> None:
        """Drive a joint at a constant speed."""
        self.actuators.append(f'<velocity joint="{joint}" kv="30"/>')
        self.drives.append(Drive(joint=joint, amplitude=speed, is_speed=True))


def drop(stage: Stage) -> None:
    """Bodies of all shapes tumble and fall on top of each other."""
    for index in range(stage.rng.integers(2, 6)):
        shape, size, reach = _random_shape(stage.rng)
        height = 0.5 + reach + 0.8 * index + stage.rng.uniform(0, 0.3)  # different heights, so that none overlap
        across = stage.rng.uniform(-0.5, 0.5, 2)
        velocity = np.concatenate([stage.rng.normal(0, 0.5, 3), stage.rng.normal(0, 2.5, 3)])
        stage.free_body(shape, size, _at(stage, across, height), velocity=velocity, turned=True)


def roll(stage: Stage) -> None:
    """Balls roll side by side over the ground without slipping."""
    heading, speed = _unit(stage.rng.uniform(0, 2 * np.pi)), stage.rng.uniform(0.4, 2.5)
    aside = np.array([-heading[1], heading[0]])
    for index in range(stage.rng.integers(1, 4)):
        radius = stage.rng.uniform(0.15, 0.4)
        across = -heading * speed * 0.6 + aside * (index * 0.9 - 0.9)
        own_speed = speed * stage.rng.uniform(0.7, 1.2)
        spin = np.array([-heading[1], heading[0], 0]) * own_speed / radius
        velocity = np.concatenate([heading * own_speed, [0], spin])
        stage.free_body("sphere", [radius], _at(stage, across, radius + 0.002), velocity=velocity, turned=True)


def slide(stage: Stage) -> None:
    """Boxes slide and turn on the ground until friction stops them."""
    heading = _unit(stage.rng.uniform(0, 2 * np.pi))
    aside = np.array([-heading[1], heading[0]])
    for index in range(stage.rng.integers(1, 4)):
        size = stage.rng.uniform(0.12, 0.35, 3)
        across = -heading * stage.rng.uniform(0.3, 0.8) + aside * (index * 1.1 - 1.1)
        velocity = np.array([*(heading * stage.rng.uniform(0.8, 3.0)), 0, 0, 0, stage.rng.normal(0, 2)])
        stage.free_body("box", size.tolist(), _at(stage, across, size[2] + 0.002), velocity=velocity, turned=False)


def throw(stage: Stage) -> None:
    """Bodies fly in from the sides on ballistic arcs and meet near the middle."""
    flight_s = stage.rng.uniform(0.6, 1.2)
    for index in range(stage.rng.integers(2, 4)):
        shape, size, _ = _random_shape(stage.rng)
        heading = _unit(2.1 * index + stage.rng.uniform(0, 0.8))
        start_height = stage.rng.uniform(0.6, 1.8)
        up = stage.rng.uniform(1.0, 3.0)
        velocity = np.array([*(-heading * 1.8 / flight_s), up, *stage.rng.normal(0, 4, 3)])
        stage.free_body(shape, size, _at(stage, heading * 1.8, start_height), velocity=velocity, turned=True)


def tower(stage: Stage) -> None:
    """A ball knocks over a tower of boxes."""
    half = stage.rng.uniform(0.14, 0.22)
    num = int(stage.rng.integers(3, 6))
    for level in range(num):
        across = stage.rng.normal(0, 0.02, 2)
        height = half + level * (2 * half + 0.002) + 0.001
        stage.free_body("box", [half] * 3, _at(stage, across, height), velocity=np.zeros(6), turned=False)
    heading, speed, radius = _unit(stage.rng.uniform(0, 2 * np.pi)), stage.rng.uniform(2.5, 4.5), 0.2
    velocity = np.array([*(-heading * speed), 1.0, *stage.rng.normal(0, 3, 3)])
    height = half * num
    stage.free_body("sphere", [radius], _at(stage, heading * 1.5, height), velocity=velocity, turned=True)


def ramp(stage: Stage) -> None:
    """Balls roll down a slope."""
    azimuth, slope = stage.rng.uniform(0, 2 * np.pi), stage.rng.uniform(0.25, 0.5)
    downhill = np.array([*(_unit(azimuth) * np.cos(slope)), -np.sin(slope)])
    normal = np.array([*(_unit(azimuth) * np.sin(slope)), np.cos(slope)])
    aside = np.cross(normal, downhill)
    centre = _at(stage, np.zeros(2), 1.3 * np.sin(slope) + 0.05)
    axes = f'xyaxes="{_text([*downhill, *aside])}"'
    stage.bodies.append(stage.geom("box", [1.3, 0.8, 0.03], f'pos="{_text(centre)}" {axes}'))
    for index in range(stage.rng.integers(1, 4)):
        size = stage.rng.uniform(0.12, 0.22)
        across = -downhill * stage.rng.uniform(0.6, 1.0) + aside * (0.5 * index - 0.5)
        position = centre + across + normal * (0.03 + size * 1.8)
        stage.free_body("sphere", [size], position, velocity=np.zeros(6), turned=True)


def pendulum(stage: Stage) -> None:
    """Balls and boxes on rods swing from a beam, each in its own plane and phase."""
    for index in range(stage.rng.integers(1, 4)):
        length, radius = stage.rng.uniform(0.7, 1.5), stage.rng.uniform(0.15, 0.3)
        anchor = _at(stage, np.array([0.8 * index - 0.8, 0]), length + radius + stage.rng.uniform(0.2, 0.6))
        tilt = stage.rng.uniform(0.3, 1.2) * stage.rng.choice([-1, 1])
        rod = stage.geom("capsule", [0.03], f'fromto="0 0 0 0 0 {-length}"')
        bob = stage.geom(str(stage.rng.choice(["sphere", "box"])), [radius * 0.8] * 3, f'pos="0 0 {-length}"')
        hinge = '<joint type="hinge" axis="0 1 0" damping="0.02"/>'
        stage.bodies.append(f'<body pos="{_text(anchor)}" euler="0 {tilt} 0">{hinge}{rod}{bob}</body>')


def chain(stage: Stage) -> None:
    """A hanging chain with a weight at its end is released from the side."""
    num, link = int(stage.rng.integers(4, 8)), stage.rng.uniform(0.18, 0.28)
    anchor = _at(stage, np.zeros(2), num * link + stage.rng.uniform(0.4, 0.8))
    inner = stage.geom("sphere", [stage.rng.uniform(0.12, 0.22)], f'pos="0 0 {-link}"')
    for level in reversed(range(num)):
        rod = stage.geom("capsule", [0.06], f'fromto="0 0 0 0 0 {-link}"')
        tilt = f'euler="{stage.rng.uniform(-0.4, 0.4)} {stage.rng.uniform(0.1, 0.4)} 0"'
        place = _text(anchor) if level == 0 else f"0 0 {-link}"
        inner = f'<body pos="{place}" {tilt}><joint type="ball" damping="0.01"/>{rod}{inner}</body>'
    stage.bodies.append(inner)


def walker(stage: Stage) -> None:
    """A torso on a slow turntable swings its jointed limbs as if it ran."""
    torso = stage.geom("capsule", [stage.rng.uniform(0.14, 0.2)], 'fromto="0 0 -0.25 0 0 0.25"')
    head = stage.geom("sphere", [0.15], 'pos="0 0 0.55"')
    limbs = "".join(_limb(stage, side, top) for side in (-0.22, 0.22) for top in (0.25, -0.3))
    position = _at(stage, np.zeros(2), 1.35)
    name = stage.name("turn")
    turn = f'<joint type="hinge" axis="0 0 1" name="{name}"/>'
    stage.bodies.append(f'<body pos="{_text(position)}">{turn}{torso}{head}{limbs}</body>')
    stage.turn_steadily(name, stage.rng.uniform(-1.2, 1.2))


def rotor(stage: Stage) -> None:
    """Blades turn about a fixed axle at a constant speed."""
    height, num = stage.rng.uniform(0.9, 1.4), int(stage.rng.integers(2, 5))
    angles = np.arange(num) * 2 * np.pi / num
    blades = "".join(
        stage.geom(
            "box",
            [0.3, 0.09, 0.03],
            f'pos="{0.35 * np.cos(a)} {0.35 * np.sin(a)} 0" euler="0 0 {a}" contype="0" conaffinity="0"',
        )
        for a in angles
    )
    attitude = f'euler="{stage.rng.uniform(0.6, 1.6)} {stage.rng.uniform(-0.6, 0.6)} {stage.rng.uniform(0, 6)}"'
    name = stage.name("axle")
    hinge = f'<joint type="hinge" axis="0 0 1" name="{name}"/>'
    stage.bodies.append(f'<body pos="{_text(_at(stage, np.zeros(2), height))}" {attitude}>{hinge}{blades}</body>')
    stage.turn_steadily(name, stage.rng.uniform(0.5, 5.0) * stage.rng.choice([-1, 1]))


ACTS: tuple[Callable[[Stage], None], ...] = (
    drop,
    roll,
    slide,
    throw,
    tower,
    ramp,
    pendulum,
    chain,
    walker,
    rotor,
)


def _limb(stage: Stage, side: float, top: float) -> str:
    """XML of two capsules on hinges, driven by sines of one frequency. The opposite limb is half a period late."""
    names = (stage.name("limb"), stage.name("limb"))
    frequency = 2 * np.pi * 0.9
    phase = 0.0 if (side > 0) == (top > 0) else np.pi
    upper = stage.geom("capsule", [0.07], 'fromto="0 0 0 0 0 -0.3"')
    lower = stage.geom("capsule", [0.055], 'fromto="0 0 0 0 0 -0.3"')
    for name, amplitude, lag in zip(names, stage.rng.uniform(0.4, 0.9, 2), (0.0, 0.8), strict=True):
        stage.actuators.append(f'<position joint="{name}" kp="60" kv="4"/>')
        stage.drives.append(Drive(joint=name, amplitude=amplitude, frequency=frequency, phase=phase - lag))
    hinge = '<joint type="hinge" axis="0 1 0" name="{}" damping="0.2"/>'
    return (
        f'<body pos="0 {side} {top}">{hinge.format(names[0])}{upper}'
        f'<body pos="0 0 -0.33">{hinge.format(names[1])}{lower}</body></body>'
    )


def _random_shape(rng: np.random.Generator) -> tuple[str, list[float], float]:
    """A shape, its MuJoCo size, and the radius of a ball that contains it."""
    shape = str(rng.choice(SHAPES))
    size = rng.uniform(0.13, 0.32, 3)
    reach = {"box": np.linalg.norm(size), "sphere": size[0], "ellipsoid": size.max()}
    num = {"box": 3, "sphere": 1, "ellipsoid": 3}
    return shape, size[: num.get(shape, 2)].tolist(), float(reach.get(shape, size[0] + size[1]))


def _at(stage: Stage, across: Vector, height: float) -> Vector:
    return np.array([*(stage.place + across), height])


def _unit(angle: float) -> Vector:
    return np.array([np.cos(angle), np.sin(angle)])


def _text(values: Sequence[float] | Vector) -> str:
    return " ".join(f"{value:.6g}" for value in values)
