"""Tells which host names are this machine."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine: localhost, 127.0.0.0/8 or ::1. Give it without brackets and port."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
