"""The four networks of the embedded base: diffusers' and transformers' own classes, in small."""

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 128  # of the text encoder, and so of the cross-attention


def vae() -> AutoencoderKL:
    """64 × 64 × 3 pixels ⇄ 16 × 16 × 4 latents (f = 4)."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def text_encoder(vocabulary: int, start: int, end: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=WIDTH,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
            attn_implementation="eager",
        )
    )


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 144),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(1, 2, 2),  # the number of heads, by diffusers' old name
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )
