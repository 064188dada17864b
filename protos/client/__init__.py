"""The client of the reward server, blocking and async, over gRPC or HTTP: what programs import.

`client.py` is the client, `errors.py` what it raises; each transport knows one wire. It needs no torch.
"""

from protos.client.client import AsyncRewardClient, RewardClient
from protos.client.errors import RequestRefused, RewardClientError, ServerBusy, ServerFailed, ServerSilent
from protos.submissions import submission

__all__ = [
    "AsyncRewardClient",
    "RequestRefused",
    "RewardClient",
    "RewardClientError",
    "ServerBusy",
    "ServerFailed",
    "ServerSilent",
    "submission",
]
