"""Loads the Lua scripts of the queue, and lists each with the shared functions it uses. A script is one transaction.

A connection can break after a command has run and before its answer has come. redis-py then sends the command again.
A script that runs twice must therefore change nothing the second time. Callers choose job ids and claim tokens for
this, and a script checks them before it writes. Leases, deadlines and lifetimes use only Redis's clock, so machines
need not agree on the time. The scripts need Redis 6.2. Each file begins with its arguments and answers. Keys and their
lifetimes are in keys.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files

GROUP = "workers"  # the consumer group that reads the stream of jobs
FOLDER = files("reward_server.queue") / "lua"


@dataclass(frozen=True, kw_only=True)
class Script:
    """A script's text, and the files in `lua/` that it is made of."""

    name: str
    parts: tuple[str, ...]
    text: str = field(repr=False)


def script(name: str, *shared: str) -> Script:
    """Put a script together: the group's name, the prelude, the shared functions in this order, the script's file."""
    parts = ("prelude.lua", *(f"shared/{function}.lua" for function in shared), f"{name}.lua")
    texts = [FOLDER.joinpath(part).read_text(encoding="utf-8") for part in parts]
    return Script(name=name, parts=parts, text="\n".join([f"local group = '{GROUP}'\n", *texts]))


# Jobs, from admission to their outcome.
BEGIN = script("begin", "stream", "turns", "lanes")
ADMIT = script("admit", "stream", "turns", "lanes", "hold", "settle", "version_of")
CLAIM = script("claim", "stream", "turns", "lease", "lanes", "start")
RECLAIM = script("reclaim", "stream", "turns", "lease", "lanes", "start")
RENEW = script("renew", "stream")
HAND_BACK = script("hand_back", "stream", "lease")
IDLE = script("idle", "stream")
FINISH = script("finish", "stream", "turns", "hold", "settle")
GIVE_UP = script("give_up", "stream", "turns", "hold", "settle")
OVERDUE = script("overdue")
UNSTAGE = script("unstage")
DROP_LETTERS = script("drop_letters")

# Live workers, and the models they serve.
ANNOUNCE = script("announce", "stream", "lanes", "forget")
LEAVE = script("leave", "stream", "lanes", "forget")
RETURN_ALL = script("return_all", "stream", "lease", "forget")
MODELS = script("models")
LANES = script("lanes", "stream", "turns", "lanes")
VITALS = script("vitals")

# Clips that a run keeps for its refreshes, and a refresh from admission to its new version.
PLACE_CLIP = script("place_clip", "reservoir")
KEEP_CLIP = script("keep_clip", "reservoir", "hold", "renew_versions")
MISS_CLIP = script("miss_clip", "reservoir")
LOSE_CLIPS = script("lose_clips", "reservoir")
FREEZE_ANCHOR = script("freeze_anchor", "reservoir")
REFRESH_ADMIT = script("refresh_admit", "refresh")
REFRESH_LOOK = script("refresh_look")
REFRESH_CLAIM = script("refresh_claim", "lease")
REFRESH_RENEW = script("refresh_renew", "refresh")
REFRESH_HAND_BACK = script("refresh_hand_back", "refresh", "lease")
REFRESH_PUBLISH = script("refresh_publish", "refresh", "reservoir", "hold", "renew_versions")
REFRESH_FAIL = script("refresh_fail", "refresh")
ROLL_BACK = script("roll_back")
RESTORE_VERSION = script("restore_version", "hold", "renew_versions")
TOUCH_RUN = script("touch_run", "reservoir", "hold", "renew_versions")
