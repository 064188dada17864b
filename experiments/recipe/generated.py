"""Lists the generated clips that the recipe uses: previews of today's video models, which packages carry.

All were looked at. Split screens, captions and cuts are left out; `first` and `last` are the frames of a shot, with
last excluded. The packages are under the MIT licence; none states a licence for each file.
"""

from __future__ import annotations

import csv
from pathlib import Path

from experiments.recipe.media import Media, Package

TABLE = Path(__file__).with_name("generated.csv")
LICENCE = "MIT"


def generated_clips() -> tuple[Media, ...]:
    """The clips of the table, in its order. All are trained on; other sets measure."""
    with TABLE.open(newline="") as file:
        return tuple(_media(row) for row in csv.DictReader(file))


def _media(row: dict[str, str]) -> Media:
    return Media(
        source=Path(row["member"]).stem,
        package=Package(client="pip", name=row["package"], version=row["version"], licence=LICENCE),
        member=row["member"],
        split="train",
        sha256=row["sha256"],
        shots=((int(row["first"]), int(row["last"])),),
        generator=row["generator"],
    )
