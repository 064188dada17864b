"""Gets rewards for the training loop: clips go out over gRPC, outcomes come back and are kept in a journal.

Outcomes come from Redis or over gRPC. `objective.py` computes advantages from the rewards.
"""
