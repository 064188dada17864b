"""Writes torch.txt, server.txt and trainer.txt from pyproject.toml: what the images install before our own code.

docker/Dockerfile runs this in its build. A change of our code then keeps the cached layers of the dependencies.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

TORCH = re.compile(r"torch(vision)?\b")


def requirements(pyproject: Path) -> dict[str, list[str]]:
    """Requirements of each file, by name. `torch` holds those of the others that come from TORCH_INDEX."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    images = {name: [*project["dependencies"], *extras[name]] for name in ("server", "trainer")}
    return {"torch": [line for line in images["server"] if TORCH.match(line)], **images}


if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    for name, lines in requirements(source).items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
