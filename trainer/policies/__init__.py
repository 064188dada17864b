"""Image-to-video base models as policies: `svd` and `wan` on diffusers, `tiny` builds both at toy size."""
