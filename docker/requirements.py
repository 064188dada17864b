"""pyproject.toml -> torch.txt, server.txt and trainer.txt: what the images install before our own code.

Runs in the build of docker/Dockerfile, so that a change of the code keeps the layers of its dependencies.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

TORCH = re.compile(r"torch(vision)?\b")


def requirements(pyproject: Path) -> dict[str, list[str]]:
    """By file name; `torch` is the part of the others that comes from an index of its own."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    images = {name: [*project["dependencies"], *extras[name]] for name in ("server", "trainer")}
    return {"torch": [line for line in images["server"] if TORCH.match(line)], **images}


if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    for name, lines in requirements(source).items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
