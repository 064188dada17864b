"""Reads a published checkpoint and checks that it has exactly the names and shapes of its network's tensors.

Files are safetensors files, or torch files read with `weights_only=True`, so that no code in them runs. The state dict
is at the top level, under "model", or, in checkpoints of SHIFT's reference code, under "discriminator_state_dict".
The reference's instantaneous checkpoint also contains a SEA-RAFT, under `flow_layer.model.`, with the running
statistics that it had at the end of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # torch.load raises it for a file that it refuses

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reward_server.errors import BadRequest
from reward_server.models.published import Published

DISCRIMINATOR = "discriminator_state_dict"
FLOW_NET = "flow_layer.model."
SHOWN = 3  # names shown in an error message


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file. Raises BadRequest if there is none."""
    if not path.is_file():
        raise BadRequest(f"{path} is not a file; give the path of the checkpoint")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadRequest(f"{path} is not a checkpoint of plain tensors ({reason}); download it again") from error
    for wrapper in (DISCRIMINATOR, "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadRequest(f"{path} holds no state dict; give the published checkpoint")
    return dict(found)


def network_weights(network: Published, path: Path) -> dict[str, Tensor]:
    """Read a network's tensors from a published file: one entry for every key of its layout.

    Raises BadRequest if the file is another checkpoint.
    """
    state = read_checkpoint(path)
    if any(name.startswith(FLOW_NET) for name in state):
        state = part(state, FLOW_NET)
    state = _with_aliases(state, network, path)
    check_layout(state, {name: tuple(value.shape) for name, value in network.layout().items()}, path, network.title)
    return state


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names start with `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def check_layout(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path, title: str) -> None:
    """Raise BadRequest unless `state` has exactly the names and shapes of `shapes` and only finite values.

    The message calls the expected checkpoint `title`.
    """
    faults = {
        "lacks": sorted(shapes.keys() - state.keys()),
        "has unknown": sorted(state.keys() - shapes.keys()),
        "has other shapes in": [n for n in shapes if n in state and tuple(state[n].shape) != shapes[n]],
        "has NaN or infinity in": [n for n in shapes if n in state and not bool(state[n].isfinite().all())],
    }
    told = [f"{fault} {len(names)} entries ({', '.join(names[:SHOWN])})" for fault, names in faults.items() if names]
    if told:
        raise BadRequest(f"{path} is not {title}: it {'; it '.join(told)}; give the published checkpoint")


def _with_aliases(state: dict[str, Tensor], network: Published, path: Path) -> dict[str, Tensor]:
    """Add the missing names of shared tensors, because a safetensors file keeps only one name of each."""
    filled = dict(state)
    for names in network.aliases():
        present = [name for name in names if name in state]
        if any(not torch.equal(state[name], state[present[0]]) for name in present):
            raise BadRequest(
                f"{path}: {' and '.join(present)} are one tensor in {network.title} but differ here; download it again"
            )
        filled |= {name: state[present[0]] for name in names if present}
    return filled
