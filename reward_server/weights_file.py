"""Reads what the first bytes of a weights file say, without torch: its metadata and the shapes of its weights.

The file is safetensors: eight bytes with the length of a JSON header, the header, then the values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protos.types import DISCRIMINATORS
from reward_server.errors import BadRequest

MAX_HEADER_BYTES = 64 * 1024**2  # a header may hold a reference table
PREFIXES = tuple(f"{name}." for name in DISCRIMINATORS)  # what the names of their weights begin with


@dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """The header of a weights file."""

    metadata: Mapping[str, str]
    shapes: Mapping[str, Sequence[int]]  # by the names of the tensors
    num_bytes: int  # of the whole file

    @property
    def architecture_digest(self) -> str:
        """See `architecture_digest`."""
        sizes = [self.metadata.get(name, "") for name in DISCRIMINATORS]
        return architecture_digest(((n, s) for n, s in self.shapes.items() if n.startswith(PREFIXES)), sizes)


def architecture_digest(shapes: Iterable[tuple[str, Sequence[int]]], sizes: Sequence[str]) -> str:
    """A digest of the names and shapes of both discriminators' weights, and of their configurations as JSON."""
    named = sorted(f"{name} {list(shape)}" for name, shape in shapes)
    return hashlib.sha256("\n".join([*named, *sizes]).encode()).hexdigest()


def header_of(start: bytes) -> WeightsHeader | None:
    """The header in the first bytes of a file, or None if more of them are needed. Raises BadRequest."""
    size = int.from_bytes(start[:8], "little") if len(start) >= 8 else 0
    if size > MAX_HEADER_BYTES:
        raise BadRequest(
            f"the weights file's header has {size} bytes, the limit is {MAX_HEADER_BYTES}; send safetensors"
        )
    if len(start) < 8 + size or not size:
        return None
    try:
        found: dict[str, Any] = json.loads(start[8 : 8 + size])
        metadata = {name: str(value) for name, value in found.pop("__metadata__", {}).items()}
        shapes = {name: tuple(map(int, tensor["shape"])) for name, tensor in found.items()}
        end = max((int(tensor["data_offsets"][1]) for tensor in found.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadRequest(f"the weights file is not safetensors ({error!r}); send the file as it was fetched") from error
    return WeightsHeader(metadata=metadata, shapes=shapes, num_bytes=8 + size + end)
