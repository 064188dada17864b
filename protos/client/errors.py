"""What can go wrong between a client and the reward server; a clip that cannot be scored is an Outcome instead.

RewardClientError
├─ RequestRefused   the server will not take this request; sending it again will not help
├─ ServerFailed     the server broke on this request
├─ ServerBusy       overloaded, not ready or not reachable; was retried, and can be retried later
└─ ServerSilent     no answer within the client's timeout
"""

from __future__ import annotations


class RewardClientError(Exception):
    """`code` is what the server gave, or one of the client's own: compare it with members of ErrorCode.

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
    """`retry_after_s` is the server's own estimate, None where it gave none."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class ServerSilent(RewardClientError):
    pass
