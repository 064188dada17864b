"""The client of the reward server, blocking and async, over gRPC or HTTP. Programs import it from here.

The client is in `client.py` and its errors in `errors.py`. Each transport handles one protocol. Torch is not needed.
"""

from protos.client.api_key import read_api_key
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
    "read_api_key",
    "submission",
]
