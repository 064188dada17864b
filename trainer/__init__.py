"""The training client: SHIFT fine-tuning of image-to-video models. It uses the reward server only through `protos`."""
