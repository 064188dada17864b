"""The contract that the reward server and the trainer share: the .proto, its Python values and the codec."""
