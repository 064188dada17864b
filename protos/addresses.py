"""Tells which addresses and host names are this machine."""

from __future__ import annotations

from ipaddress import ip_address


def host_of(address: str) -> str:
    """The host of HOST:PORT, without the brackets of IPv6."""
    return address.rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine: localhost, 127.0.0.0/8 or ::1. Give it without brackets and port."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
