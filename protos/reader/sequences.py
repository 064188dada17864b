"""Opens an image sequence as a Reel: a folder of png or jpg pictures, or a pattern such as frames/%04d.png.

Pictures are ordered by the numbers in their names, so 2 comes before 10. If one number counts them, it also gives
their times: a missing picture is a gap, and frames do not move up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from protos.reader.errors import ClipTooLarge, UnreadableClip
from protos.reader.guard import Guard
from protos.reader.pixels import over_black
from protos.reader.reel import Frame, Picture, Reel

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
PILLOW_ERRORS = (OSError, EOFError, SyntaxError, ValueError, RuntimeError)
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
ORIENTATION = 0x0112  # EXIF tag
PRINTF = re.compile(r"%(?:0\d+)?d")


def is_pattern(path: Path) -> bool:
    """Whether the path is a pattern of pictures: its name has %d, %04d, * or ?, and ends like a picture's."""
    has_wildcard = PRINTF.search(path.name) or set("*?[") & set(path.name)
    return bool(has_wildcard) and path.suffix.lower() in PICTURE_SUFFIXES and not path.exists()


def is_sequence(path: Path) -> bool:
    return is_pattern(path) or (path.is_dir() and bool(pictures_of(path)))


def pictures_of(path: Path) -> list[Path]:
    """The pictures in a folder (not in those below it) or of a pattern, in natural order. Hidden files are left out."""
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES]
    else:
        name = PRINTF.sub("*", path.name)
        numbered = re.compile(PRINTF.sub("@", re.escape(path.name).replace("\\%", "%")).replace("@", r"\d+"))
        found = [file for file in path.parent.glob(name) if name == path.name or numbered.fullmatch(file.name)]
    return sorted((file for file in found if not file.name.startswith(".") and file.is_file()), key=natural)


def sequence_folders(folder: Path) -> list[Path]:
    """The folders with at least two pictures, this one or those below it at any depth, in natural order."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.name.startswith("."))]
    return sorted((one for one in folders if len(pictures_of(one)) > 1), key=natural)


def natural(path: Path) -> list[tuple[int, str]]:
    """A sorting key by which the numbers in a path count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def open_sequence(path: Path, guard: Guard, fps: float | None) -> Reel:
    """Open the pictures of a folder or pattern at `fps`. Only their headers are read here.

    Raises UnreadableClip without pictures or `fps`, and for pictures of different sizes; ClipTooLarge.
    """
    pictures = pictures_of(path)
    if not pictures:
        raise UnreadableClip(f"no png or jpg picture matches '{path}'; check the folder or the pattern")
    if fps is None or not fps > 0:
        raise UnreadableClip(
            f"'{path}' is a sequence of {len(pictures)} pictures and needs its frame rate, a positive number, got "
            f"{fps}; give --fps (fps= in Python)"
        )
    guard.frames(len(pictures))
    guard.payload(sum(picture.stat().st_size for picture in pictures))
    _check_sizes(pictures, guard)
    times_s = _positions(pictures) / fps
    guard.duration(float(times_s[-1]))

    def shown(wanted: Sequence[int] | None) -> Iterator[tuple[float, Picture]]:
        for at in range(len(pictures)) if wanted is None else sorted(set(wanted)):
            guard.clock()
            yield float(times_s[at]), _picture(pictures[at], guard)

    return Reel(codec="pictures", times_s=times_s, pictures=shown)


def _positions(pictures: Sequence[Path]) -> NDArray[np.float64]:
    """The place of each picture in time, counted in pictures, from the one number in which their names differ."""
    parts = [re.split(r"(\d+)", picture.name) for picture in pictures]
    if len({len(one) for one in parts}) == 1:
        columns = [column for column in zip(*parts, strict=True) if len(set(column)) > 1]
        if len(columns) == 1 and all(value.isdecimal() for value in columns[0]):
            numbers = np.array([int(value) for value in columns[0]], np.float64)
            steps = np.diff(numbers)
            if steps.size and steps.min() > 0:
                return np.asarray((numbers - numbers[0]) / np.median(steps))
    return np.arange(len(pictures), dtype=np.float64)


def _check_sizes(pictures: Sequence[Path], guard: Guard) -> None:
    first: tuple[int, int] | None = None
    for picture in pictures:
        guard.clock()
        with _open(picture, guard) as image:
            size = image.size[::-1] if _orientation(image) in ROTATED else image.size
        guard.size(size[1], size[0])
        first = first or size
        if size != first:
            raise UnreadableClip(
                f"'{picture}' is {size[0]}x{size[1]}, but '{pictures[0].name}' is {first[0]}x{first[1]}; write the "
                "pictures of a sequence in one size"
            )


def _open(picture: Path, guard: Guard) -> Image.Image:
    try:
        return Image.open(picture, formats=["PNG", "JPEG"])
    except Image.DecompressionBombError as error:
        raise ClipTooLarge(f"'{picture}' is too large to open; {guard.smaller(error)}") from error
    except PILLOW_ERRORS as error:
        raise UnreadableClip(f"'{picture}' cannot be opened as png or jpg ({error}); leave it out") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a jpg, 1 for a png: its EXIF data can come after its pixels, which are not read yet."""
    return int(image.getexif().get(ORIENTATION, 1)) if image.format == "JPEG" else 1


def _picture(path: Path, guard: Guard) -> Picture:
    pixels = _pixels(path, guard)
    height, width = pixels.shape[:2]
    return Picture(height_px=height, width_px=width, rgb=lambda: pixels, luma=partial(_green, pixels))


def _green(pixels: Frame) -> NDArray[np.uint8]:
    return pixels[..., 1]


def _pixels(path: Path, guard: Guard) -> Frame:
    """The picture as shown, uint8 [H,W,3]: turned by its EXIF orientation, blended over black, 16 bits cut to 8."""
    with _open(path, guard) as image:
        try:
            upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
            if upright.mode.startswith("I"):
                grey = (np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8)
                return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
            return over_black(np.asarray(upright.convert("RGBA")))
        except PILLOW_ERRORS as error:
            raise UnreadableClip(f"'{path}' cannot be decoded ({error}); leave it out or write it again") from error
