"""Defines what the groups of settings share: their source, and a reader of lists."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024**2
PREFIX = "MOTION_REWARD_"


class Group(BaseSettings):
    """Settings that are read from the environment. `Settings` joins all groups."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)


def names(listed: str) -> tuple[str, ...]:
    """The names in a setting that lists them, separated by commas."""
    return tuple(name for part in listed.split(",") if (name := part.strip()))
