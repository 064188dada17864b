"""What was tried and how the shipped weights are made: the proof, the recipe, the demo. Not installed.

It may import `trainer`, `reward_server` and `protos`; none of them imports it.
"""
