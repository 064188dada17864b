"""Makes the trained toy base that the package ships, and clips to fine-tune it on: `python -m experiments.toy`."""
