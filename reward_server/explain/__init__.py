"""Turns what a scoring pass already holds (tracks, flow confidence, residual, features) into an Explanation.

The pipeline calls it for clips whose context asks for it, and for no other clip. The values are in
protos/explanation.py. The doors and the queue pass them on inside the reward.
"""
