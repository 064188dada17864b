"""Writes toy-sized Stable Video Diffusion and Wan bases with seeded random weights, as ordinary diffusers folders.

`svd.py` and `wan.py` load them like any other base, so tests and small experiments on a laptop run the same code as a
GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from trainer.policies.protocol import PolicyError

WIDTH = 32
"""Width of the text and image embeddings. It is the smallest that SVD's group norms allow."""


def tiny_svd(
    folder: Path,
    *,
    seed: int = 0,
    num_frames: int = 8,
    channels: tuple[int, ...] = (32, 64),
    vae_channels: tuple[int, ...] = (32, 64),
    latent_channels: int = 4,
) -> Path:
    """Write a toy SVD pipeline to `folder` and return it.

    The sides of latents are those of frames divided by 2 ** (len(vae_channels) - 1). Raises PolicyError if a width is
    not a multiple of 32.
    """
    if any(width % 32 for width in (*channels, *vae_channels)):
        raise PolicyError(f"widths must be multiples of 32 (group norm), got {channels} and {vae_channels}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = svd_pipeline(
            vae=AutoencoderKLTemporalDecoder(
                block_out_channels=vae_channels,
                down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
                latent_channels=latent_channels,
                layers_per_block=1,
            ),
            image_encoder=_image_encoder(),
            unet=_unet(channels, latent_channels, num_frames),
        )
    pipe.save_pretrained(folder)
    return folder


def svd_pipeline(*, vae: Any, image_encoder: Any, unet: Any) -> Any:
    """A pipeline like img2vid-xt's, with its scheduler and preprocessing, around networks of any size."""
    return StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=image_encoder,
        unet=unet,
        scheduler=_svd_scheduler(),
        feature_extractor=CLIPImageProcessor(crop_size=224, size={"shortest_edge": 224}),
    )


def _unet(channels: tuple[int, ...], latent_channels: int, num_frames: int) -> Any:
    last = len(channels) - 1  # as in SVD, the coarsest level has no attention
    return UNetSpatioTemporalConditionModel(
        in_channels=2 * latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * last + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * last,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        addition_time_embed_dim=WIDTH,
        projection_class_embeddings_input_dim=3 * WIDTH,
        num_frames=num_frames,
    )


def _image_encoder() -> Any:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=224,  # the pipeline resizes images to this
            patch_size=32,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )


def _svd_scheduler() -> Any:
    """The scheduler with img2vid-xt's settings."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )


def tiny_wan(folder: Path, *, seed: int = 0, num_layers: int = 2, heads: int = 2, vae_width: int = 8) -> Path:
    """Write a toy Wan2.2 TI2V pipeline to `folder` and return it.

    Latents have 48 channels. They are 16 times smaller than frames in height and width, and 4 times in time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = wan_pipeline(
            text_encoder=_text_encoder(len(_byte_tokenizer())),
            vae=wan_vae(base_dim=vae_width, decoder_base_dim=vae_width, num_res_blocks=1),
            transformer=WanTransformer3DModel(
                in_channels=48,
                out_channels=48,
                num_attention_heads=heads,
                attention_head_dim=24,  # a multiple of 6: rotary embeddings split it into three even parts
                text_dim=WIDTH,
                freq_dim=WIDTH,
                ffn_dim=96,
                num_layers=num_layers,
                rope_max_seq_len=64,
            ),
        )
    pipe.save_pretrained(folder)
    return folder


def wan_pipeline(*, text_encoder: Any, vae: Any, transformer: Any) -> Any:
    """A pipeline like TI2V-5B's around networks of any size, except that its tokenizer has one token per byte."""
    return WanImageToVideoPipeline(
        tokenizer=_byte_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, num_train_timesteps=1000
        ),
        transformer=transformer,
        expand_timesteps=True,
    )


def wan_vae(**sizes: Any) -> Any:
    """A VAE in TI2V-5B's layout: 48 latent channels, sides 16 times smaller. `sizes` replace diffusers' defaults."""
    return AutoencoderKLWan(
        **sizes,
        z_dim=48,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        is_residual=True,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )


def _text_encoder(vocabulary: int) -> Any:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary, d_model=WIDTH, d_kv=16, d_ff=2 * WIDTH, num_layers=1, num_heads=2, dropout_rate=0.0
        )
    )


def _byte_tokenizer() -> Any:
    """A tokenizer with one token per byte and T5's end and padding tokens. It needs no vocabulary file."""
    letters = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
