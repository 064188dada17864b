"""Rewards for the training loop: submitted over gRPC, awaited through Redis, kept in a journal.

What is made of rewards stands in `objective.py`.
"""
