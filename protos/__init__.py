"""Defines the contract between the reward server and the trainer: the .proto, its Python values, codecs and client.

The server and the trainer both import this package. It imports neither of them, and it does not need torch.
"""
