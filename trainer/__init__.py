"""The training client. It knows the reward server only through `protos`.

It loads no discriminator: rewards and refreshes are asked of the server. Experiments stand in `experiments`.
"""
