"""Lists the camera clips of public repositories that the recipe uses beside those of packages.

All were looked at. Films, broadcasts and known research sets are left out, as are pictures with marks drawn on them.
`shots` are ranges of frames, with the last excluded. The licences are those of the repositories; the one of
`sample-videos` is for its clips, and the others state none for each file.
"""

from __future__ import annotations

import csv
from pathlib import Path

from experiments.recipe.media import Media, Package, Shots

TABLE = Path(__file__).with_name("repositories.csv")


def repository_clips() -> tuple[Media, ...]:
    """The clips of the table, in its order. All are trained on; other sets measure."""
    with TABLE.open(newline="") as file:
        return tuple(_media(row) for row in csv.DictReader(file))


def _media(row: dict[str, str]) -> Media:
    return Media(
        source=row["source"],
        scene=row["scene"],
        package=Package(client="git", name=row["repository"], version=row["commit"], licence=row["licence"]),
        member=row["member"],
        split="train",
        sha256=row["sha256"],
        shots=_shots(row["shots"]),
    )


def _shots(text: str) -> Shots:
    """The shots of a text such as `0-120 150-300`."""
    ranges = [shot.split("-") for shot in text.split()]
    return tuple((int(first), int(last)) for first, last in ranges)
