"""Imports MuJoCo with an off-screen OpenGL that exists on this machine."""

from __future__ import annotations

import ctypes.util
import os
import sys
from types import ModuleType

from reward_server.errors import RewardServerError

# Values of MUJOCO_GL and the library that each needs. Software first: it renders the same pictures on every machine.
BACKENDS = {"osmesa": "OSMesa", "egl": "EGL"}


class RenderingUnavailable(RewardServerError):
    """MuJoCo or an off-screen OpenGL is missing. The message names the package to install."""


def import_mujoco() -> ModuleType:
    """Import MuJoCo and choose its off-screen backend, unless MUJOCO_GL names one.

    Call it before any other import of MuJoCo. Raises RenderingUnavailable if MuJoCo or an off-screen OpenGL is missing.
    """
    if sys.platform.startswith("linux") and "MUJOCO_GL" not in os.environ:
        found = [name for name, library in BACKENDS.items() if ctypes.util.find_library(library)]
        if not found:
            raise RenderingUnavailable(
                "no off-screen OpenGL: run apt-get install libosmesa6, or libegl1 libegl-mesa0 libgl1-mesa-dri"
            )
        os.environ["MUJOCO_GL"] = found[0]
    try:
        import mujoco  # noqa: PLC0415 - MuJoCo reads the backend from the environment when it is imported
    except ImportError as error:
        raise RenderingUnavailable(
            "scenes need MuJoCo: run pip install mujoco, or install this package's extra [dev]"
        ) from error
    module: ModuleType = mujoco
    return module
