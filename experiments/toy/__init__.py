"""Makes the trained toy base that the package ships, and drawn clips to fine-tune it on.

`python -m experiments.toy base | clips | picture` runs it. The scenes and the training are those of the proof.
"""
