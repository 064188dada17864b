"""Holds the experiments and the demo, which are not installed with the package.

`proof/` tests SHIFT on a toy model. `recipe/` makes the training data of the shipped weights. `demo.py` is `make demo`.
They may import `trainer`, `reward_server` and `protos`; none of those imports them.
"""
