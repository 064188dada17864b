"""Import MuJoCo with an off-screen OpenGL that this machine has."""

from __future__ import annotations

import ctypes.util
import os
import sys
from types import ModuleType

from reward_server.errors import RewardServerError

# MUJOCO_GL's value -> the library it needs. Software first: it gives the same pictures on every machine.
BACKENDS = {"osmesa": "OSMesa", "egl": "EGL"}


class RenderingUnavailable(RewardServerError):
    """MuJoCo or an off-screen OpenGL is missing; the message names the package to install."""


def import_mujoco() -> ModuleType:
    """MuJoCo, its off-screen backend chosen unless MUJOCO_GL says which; must come before any other import of it."""
    if sys.platform.startswith("linux") and "MUJOCO_GL" not in os.environ:
        found = [name for name, library in BACKENDS.items() if ctypes.util.find_library(library)]
        if not found:
            raise RenderingUnavailable(
                "no off-screen OpenGL: apt-get install libosmesa6, or libegl1 libegl-mesa0 libgl1-mesa-dri"
            )
        os.environ["MUJOCO_GL"] = found[0]
    try:
        import mujoco  # noqa: PLC0415 - the backend is chosen from the environment at import
    except ImportError as error:
        raise RenderingUnavailable("scenes need MuJoCo: pip install mujoco, or this package's extra [dev]") from error
    module: ModuleType = mujoco
    return module
