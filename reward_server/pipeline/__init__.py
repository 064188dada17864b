"""Scores clips with a profile and its discriminators.

`pipeline.py` runs the stages, `prepared.py` has the clips that wait for a batch, and `rewards.py` makes rewards of
logits.
"""

from reward_server.pipeline.model import compute_of
from reward_server.pipeline.pipeline import Pipeline
from reward_server.pipeline.prepared import PreparedClip, query_seed

__all__ = ["Pipeline", "PreparedClip", "compute_of", "query_seed"]
