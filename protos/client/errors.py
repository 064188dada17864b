"""Defines the errors that a client raises. A clip that cannot be scored is an Outcome, not an error.

RewardClientError
├─ RequestRefused   the server does not accept this request; sending it again will not help
├─ ServerFailed     the server failed on this request, or its answer could not be read
├─ ServerBusy       the server is overloaded, not ready or not reachable; try again later
└─ ServerSilent     no answer within the client's timeout
"""

from __future__ import annotations


class RewardClientError(Exception):
    """`code` comes from the server or from the client. Compare it with members of ErrorCode.

    It is a plain string, because a newer server may send codes that this ErrorCode does not have yet.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = str(code)


class RequestRefused(RewardClientError):
    pass


class ServerFailed(RewardClientError):
    pass


class ServerBusy(RewardClientError):
    """Raised after the client's retries. `retry_after_s` is the server's estimate, or None if it gave none."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class ServerSilent(RewardClientError):
    pass
