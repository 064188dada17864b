"""Samples a buffer: P rollouts per real clip, kept as latents on the CPU and submitted for rewards as they are made.

Steps 1 to 3 of Algorithm 1. Each group is saved to disk before its clips go to the server. A run that is killed in the
middle of a buffer then resumes with exactly the rollouts it had, and asks the server only for the missing rewards.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.data import Clips
from trainer.objective import GroupRewards
from trainer.policies.protocol import Example, Policy
from trainer.rewards.source import ClipGroup, Collected, RewardSource
from trainer.seeds import derived_seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """A real clip and its rollouts in latent space, on the CPU."""

    slot: int  # position of the real clip in the order of the data; unique in a run
    path: str  # file of the real clip
    example: Example
    rollouts: tuple[Tensor, ...]  # [F,C,h,w] each
    policy_step: int  # optimizer steps that the policy had taken when it sampled the rollouts

    @property
    def key(self) -> str:
        """The group's name on the reward server. Other rollouts of the same clip give another name."""
        digest = hashlib.sha256()
        for latents in self.rollouts:
            digest.update(latents.contiguous().view(torch.uint8).numpy().data)
        return f"{self.slot:08d}-{digest.hexdigest()[:16]}"

    def save(self, path: Path) -> None:
        """Write the group to a .safetensors file, replacing it atomically."""
        tensors = {f"example.{name}": tensor.contiguous() for name, tensor in self.example.tensors.items()}
        tensors |= {f"rollout.{at}": latents.contiguous() for at, latents in enumerate(self.rollouts)}
        about = {"slot": str(self.slot), "path": self.path, "policy_step": str(self.policy_step)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata=about)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Group:
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rollouts = sorted(int(name.removeprefix("rollout.")) for name in tensors if name.startswith("rollout."))
        return cls(
            slot=int(about["slot"]),
            path=about["path"],
            example=Example(
                tensors={
                    name.removeprefix("example."): tensor
                    for name, tensor in tensors.items()
                    if name.startswith("example.")
                }
            ),
            rollouts=tuple(tensors[f"rollout.{at}"] for at in rollouts),
            policy_step=int(about["policy_step"]),
        )


class Buffer:
    """This process's share of one buffer, filled group by group."""

    def __init__(
        self,
        *,
        number: int,
        slots: Sequence[int],
        version: str,
        folder: Path,
        policy: Policy,
        clips: Clips,
        rewards: RewardSource,
        num_rollouts: int,
        seed: int,
        decode_real: bool,
        num_twice: int = 0,
        rescored: bool = False,
        recompute: bool = False,
        agreed: Callable[[bool], bool] = bool,
    ) -> None:
        """`slots` are this process's; `version` is the discriminator version that scores the buffer.

        With `decode_real`, real clips are scored after a pass through the policy's VAE, not as they were read. The
        first `num_twice` groups are scored a second time with other query points. `rescored` says that an earlier
        version scored this buffer already. With `recompute`, a refresh trains only on what `see_again` submits.
        `agreed` tells whether a fact holds in every process that must sample when this one does.
        """
        self.number, self.version = number, version
        self.groups: list[Group] = []
        self._slots, self._folder = slots, folder / f"{number:06d}"
        self._policy, self._clips, self._rewards = policy, clips, rewards
        self._num_rollouts, self._seed, self._decode_real = num_rollouts, seed, decode_real
        self._num_twice, self._rescored, self._agreed = num_twice, rescored, agreed
        self._trains = not (rescored or recompute)  # an earlier version's clips are on the server already

    def __len__(self) -> int:
        """How many groups the buffer holds once it is full."""
        return len(self._slots)

    def fill(self, num: int | None = None, *, policy_step: int) -> None:
        """Fill the buffer to `num` groups in total (None: all) and submit the new ones.

        Groups that are on disk are loaded, the others are sampled. `policy_step` is the number of optimizer steps that
        the policy has taken.
        """
        for slot in self._slots[len(self.groups) : num]:
            group = self._group(slot, policy_step)
            self.groups.append(group)
            if self._num_rollouts:
                keys = {self._key(group): self._trains}
                if len(self.groups) <= self._num_twice:
                    keys[self._noise_key(group)] = False
                self._submit(group, keys)

    def rewards(self) -> Collected:
        """Wait for the rewards of the groups filled so far. Without rollouts it returns at once.

        Raises what `RewardSource.collect` raises.
        """
        if not self._num_rollouts:
            alone = GroupRewards(real=None, rollouts=())
            return Collected(groups=(alone,) * len(self.groups), latencies_s=(), errors={})
        return self._collect([self._key(group) for group in self.groups])

    def rewards_again(self) -> Collected:
        """Wait for the second rewards of the first `num_twice` groups, from other query points.

        A group's key determines its query points, so its clips have a second key.
        """
        return self._collect([self._noise_key(group) for group in self.groups[: self._num_twice]])

    def forget_missing(self) -> None:
        """Have the next process request the missing rewards again."""
        keys = [self._key(group) for group in self.groups]
        keys += [self._noise_key(group) for group in self.groups[: self._num_twice]]
        self._rewards.forget_missing(keys, 1 + self._num_rollouts)

    def see_again(self, name: str = "again") -> None:
        """Have the server's frozen networks process all clips again, with other query points, and wait for them.

        The groups are submitted under new keys, and the new rewards are not used: the advantages are already computed.
        `name` tells several times apart.
        """
        keys = [f"{self._key(group)}-{name}" for group in self.groups]
        for group, key in zip(self.groups, keys, strict=True):
            self._submit(group, {key: True})
        self._collect(keys)

    def delete(self) -> None:
        """Delete the buffer from disk, once no checkpoint needs it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _group(self, slot: int, policy_step: int) -> Group:
        path = self._folder / f"{slot:08d}.safetensors"
        if self._agreed(path.exists()):
            return Group.load(path)
        real = self._clips.at(slot)
        (example,) = self._policy.encode([real.clip], [real.caption])
        seeds = [derived_seed(self._seed, "rollout", slot, at) for at in range(self._num_rollouts)]
        rollouts = tuple(self._policy.sample(example, seeds)) if seeds else ()
        group = Group(slot=slot, path=str(real.path), example=example, rollouts=rollouts, policy_step=policy_step)
        group.save(path)
        return group

    def _key(self, group: Group) -> str:
        return f"{group.key}-rescored" if self._rescored else group.key

    def _noise_key(self, group: Group) -> str:
        return f"{self._key(group)}-noise"

    def _submit(self, group: Group, keys: Mapping[str, bool]) -> None:
        """Submit a group under those keys whose outcomes are not known, each with whether a refresh may train on it."""
        missing = [key for key in keys if not self._rewards.knows(key, 1 + self._num_rollouts)]
        if missing:
            clips = self._clip_group(group)
            for key in missing:
                self._rewards.submit(replace(clips, key=key, trains=keys[key]))

    def _collect(self, keys: Sequence[str]) -> Collected:
        if not keys:
            return Collected(groups=(), latencies_s=(), errors={})
        return self._rewards.collect(keys, 1 + self._num_rollouts)

    def _clip_group(self, group: Group) -> ClipGroup:
        if self._decode_real:
            (real,) = self._policy.decode([group.example.latents])
        else:
            real = self._clips.at(group.slot).clip
        return ClipGroup(
            key=group.key,
            real=real,
            rollouts=tuple(self._policy.decode(group.rollouts)),
            policy_version=str(group.policy_step),
            discriminator_version=self.version,
        )
