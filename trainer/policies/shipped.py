"""Finds `toy-svd`, the trained toy base that comes with the package, and checks that it is the published one.

`python -m experiments.toy base` makes it: an ordinary diffusers folder in half precision.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from trainer.policies.protocol import PolicyError

TOY_SVD = Path(__file__).parents[1] / "weights" / "toy-svd"
DIGEST = "a118828a68884f3e738b9b1940569257b00130cbc95e599f14265873f7f095a0"
"""`digest_of` the published base."""


def toy_svd(folder: Path = TOY_SVD) -> Path:
    """The folder of the trained toy base. Raises PolicyError if it is not what was published."""
    if (found := digest_of(folder)) != DIGEST:
        raise PolicyError(
            f"{folder} is not the toy base that was published: its digest is {found}, but {DIGEST} is pinned; install "
            "the package again, or set policy.base to the folder of a base of your own"
        )
    return folder


def digest_of(folder: Path) -> str:
    """A sha256 of the names and contents of all weights and configurations below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(path for kind in ("*.safetensors", "*.json") for path in folder.rglob(kind)):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
