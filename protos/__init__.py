"""The contract that the reward server and the trainer share: the .proto, its Python values and the codec.

Only data crosses here. Nothing in it needs torch, and it imports neither of the two.
"""
