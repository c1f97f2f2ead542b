"""What a file of tensors is, from its keys alone, where it is neither a base model nor an adapter that sdlora reads."""

import re
from collections.abc import Iterable

ADAPTER = "an adapter (LoRA or one of its kin)"
KNOWN = (  # (what some key looks like, what the file then is); the first that fits, so that parts come before wholes
    (r"\.(absmax|quant_map)$|\.quant_state\.bitsandbytes", "quantised by bitsandbytes (nf4 or int8)"),
    (r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale)$", "in scaled fp8, whose weights are multiplied when they are used"),
    (r"^lllite_", "a ControlNet-LLLite"),
    (r"lora_controlnet", "a Control-LoRA"),
    (r"lora_(down|up|mid|A|B)\b|\.lora\.|_lora\.(down|up)|lora_linear_layer|^lora_(unet|te\d?)_|hada_w1|lokr_w1|^lycoris_", ADAPTER),
    (r"(^|\.)control_model\.|controlnet_cond_embedding|^input_hint_block\.|controlnet_blocks\.", "a ControlNet"),
    (r"\.to_k_ip\.|^ip_adapter\.|^image_proj\.", "an IP-Adapter"),
    (r"^(adapter\.)?body\.\d+\.(block1|in_conv|resnets)", "a T2I-Adapter"),
    (r"motion_modules\.", "an AnimateDiff motion module"),
    (r"\.transformer_blocks\.\d+\.fuser\.|^position_net\.", "GLIGEN"),
    (r"\.time_stack\.|\.time_mixer\.|temporal_transformer_blocks", "Stable Video Diffusion"),
    (r"temopral_conv|temp_convs?\.\d|temporal_transformers\.", "a text-to-video model"),
    (r"^cc_projection\.", "Zero123"),
    (r"^noise_augmentor\.|^embedder\.model\.visual\.", "Stable unCLIP, whose U-Net is told an image embedding"),
    (r"(time_embed|time_embedding)\.cond_proj\.", "a latent consistency model, whose U-Net is told the guidance"),
    (r"(^|\.)joint_blocks\.", "Stable Diffusion 3"),
    (r"(^|\.)double_stream_modulation", "Flux 2"),
    (r"(^|\.)double_stream_blocks\.", "HiDream"),
    (r"(^|\.)distilled_guidance_layer\.", "Chroma"),
    (r"(^|\.)individual_token_refiner\.", "HunyuanVideo"),
    (r"(^|\.)double_blocks\.\d+\.img_attn|(^|\.)single_transformer_blocks\.", "Flux"),
    (r"(^|\.)double_layers\.\d+\.attn", "AuraFlow"),
    (r"(^|\.)clip_txt_mapper|(^|\.)effnet_mapper|channelwise\.0\.weight", "Stable Cascade"),
    (r"(^|\.)cap_embedder\.|(^|\.)noise_refiner\.", "Lumina or Z-Image"),
    (r"(^|\.)adaln_single\.|(^|\.)patchify_proj\.", "PixArt or LTX-Video"),
    (r"(^|\.)mlp_t5\.", "HunyuanDiT"),
    (r"(^|\.)t5_yproj\.", "Mochi"),
    (r"(^|\.)transformer_blocks\.\d+\.img_mod\.", "Qwen-Image"),
    (r"(^|\.)head\.modulation$", "Wan"),
    (r"^edm_mean$|^edm_std$", "Playground 2.5 (EDM), which is trained on other noise than Stable Diffusion XL"),
    (r"^edm_vpred\.", "CosXL (EDM), which is trained on other noise than Stable Diffusion XL"),
    (r"^string_to_(param|token)$|^emb_params$|^clip_[lg]$|^<.+>$", "a textual inversion (an embedding)"),
    (r"^(320|640|768|1024|1280)$", "a hypernetwork"),
    (r"\.RDB\d\.|\.rdb\d\.conv|^conv_first\.", "an upscaler of pictures (ESRGAN or alike)"),
    (r"^encoder\.block\.\d+\.layer\.\d+\.SelfAttention", "a T5 text encoder"),
    (r"^vision_model\.encoder\.|^visual\.", "an image encoder (CLIP vision)"),
)
PARTS = (  # what a file with no more than these is; for those who look for an adapter
    (r"^(model\.diffusion_model|model_ema)\.", "a base model (--base)"),
    (r"^(first_stage_model\.|vae\.)?(encoder\.(down|mid)|decoder\.(up|mid)|quant_conv)", "a VAE (--vae)"),
    (r"^(down_blocks|up_blocks|mid_block|conv_in|input_blocks|output_blocks|middle_block)\.", "a U-Net"),
    (r"^(text_model|transformer\.resblocks)\.|^(cond_stage_model|conditioner)\.", "a text encoder"),
)


def what(keys: Iterable[str]) -> str | None:
    """What the file is, None where no key tells."""
    return _first(KNOWN, keys)


def part(keys: Iterable[str]) -> str | None:
    """Which whole base model or part of one the file is, None where no key tells."""
    return _first(PARTS, keys)


def _first(table: tuple[tuple[str, str], ...], keys: Iterable[str]) -> str | None:
    names = list(keys)
    return next((said for pattern, said in table if any(re.search(pattern, name) for name in names)), None)
