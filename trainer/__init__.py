"""The training client. It knows the reward server only through `protos`."""
