"""Image-to-video base models as policies: `svd` and `wan` on diffusers, `tiny` builds both at toy size.

The loss and the loop that train them stand in `objective.py`, `step.py` and `train.py`.
"""
