"""Writes Stable Video Diffusion and Wan2.2 TI2V-5B at real size with random weights, as ordinary diffusers folders.

    python -m benchmarks.random_bases svd FOLDER [--device cuda]

GPU memory and time do not depend on the values of the weights. So `policy_cost.py` and the trainer can be tried
before the real weights (9 GB and 34 GB) are downloaded. Sizes are those of the published configurations. The frozen
parts are written in bf16, as they are used, and the VAE in fp32. `svd` takes 5 GB of disk, `wan` 25 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
)

from trainer.policies.tiny import svd_pipeline, wan_pipeline, wan_vae


def random_svd(device: str) -> Any:
    """A pipeline of the size of img2vid-xt."""
    with made_of(torch.float32, device):
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=768,
        )
    with made_of(torch.bfloat16, device):
        unet = UNetSpatioTemporalConditionModel(
            sample_size=96, num_attention_heads=(5, 10, 20, 20), projection_class_embeddings_input_dim=768
        )
        image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(  # ViT-H/14
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=16,
                patch_size=14,
                projection_dim=1024,
                hidden_act="gelu",
            )
        )
    return svd_pipeline(vae=vae, image_encoder=image_encoder, unet=unet)


def random_wan(device: str) -> Any:
    """A pipeline of the size of TI2V-5B. The tokenizer works on bytes; the text encoder has its real vocabulary."""
    with made_of(torch.float32, device):
        vae = wan_vae(
            base_dim=160,
            decoder_base_dim=256,
            temperal_downsample=(False, True, True),  # diffusers' own spelling
        )
    with made_of(torch.bfloat16, device):
        transformer = WanTransformer3DModel(
            in_channels=48, out_channels=48, num_attention_heads=24, ffn_dim=14336, num_layers=30
        )
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        )
    return wan_pipeline(text_encoder=text_encoder, vae=vae, transformer=transformer)


BASES: dict[str, Callable[[str], Any]] = {"svd": random_svd, "wan": random_wan}


@contextmanager
def made_of(dtype: torch.dtype, device: str) -> Iterator[None]:
    """Create new parameters in this type and on this device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=BASES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu", help="device that draws the weights; a GPU is much faster")
    args = parser.parse_args()
    torch.manual_seed(0)
    BASES[args.model](args.device).save_pretrained(args.folder)


if __name__ == "__main__":
    main()
