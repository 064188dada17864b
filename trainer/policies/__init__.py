"""Image-to-video base models as policies: `svd` and `wan` run on diffusers, `tiny` writes toy-sized bases for both."""
