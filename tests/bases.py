"""Base models of the true topology in diffusers' layout: Stable Diffusion's layers by number and name, but narrow and random."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

WORDS = ["a cat face, flat emoji", "a dog, 3d emoji", "a red apple, noto emoji", "a robot, pixel art", "the sun, line drawing"]
VAE = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 64,
}
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}
XL = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (1, 2, 4),  # the number of heads, by diffusers' old name
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 40 + 6 * 8,
    "use_linear_projection": True,
}


@dataclass(frozen=True)
class Spec:
    """What differs between the families."""

    unet: dict[str, Any]
    encoders: tuple[dict[str, Any], ...]  # layers, width, heads and activation of each text encoder
    pads: tuple[str, ...]  # the padding token of each tokenizer
    scheduler: dict[str, Any] = field(default_factory=dict)


def clip(layers: int, width: int, heads: int, act: str, projection: int = 32) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "hidden_act": act,
        "projection_dim": projection,
    }


END, BANG = "<|endoftext|>", "!"
ONE = UNET | {"attention_head_dim": 8, "cross_attention_dim": 24}
TWO = UNET | {"attention_head_dim": (2, 4, 4, 4), "cross_attention_dim": 32, "use_linear_projection": True}
SPECS = {
    "sd1": Spec(ONE, (clip(12, 24, 2, "quick_gelu"),), (END,)),
    "sd2": Spec(TWO, (clip(23, 32, 2, "gelu"),), (BANG,)),
    "sd2_v": Spec(TWO | {"upcast_attention": True}, (clip(23, 32, 2, "gelu"),), (BANG,), {"prediction_type": "v_prediction"}),
    "sdxl": Spec(
        UNET | XL | {"cross_attention_dim": 24 + 40}, (clip(12, 24, 2, "quick_gelu"), clip(32, 40, 2, "gelu", projection=40)), (END, BANG)
    ),
}


def write(folder: Path, kind: str, seed: int = 0, **scheduler: Any) -> Path:
    """The base model `kind`, a key of SPECS, as StableDiffusion(XL)Pipeline.from_pretrained reads it; no weight is zero."""
    import transformers
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    spec, words = SPECS[kind], vocabulary(folder.parent / "vocabulary")
    names = ("", "_2")[: len(spec.encoders)]
    classes = ("CLIPTextModel", "CLIPTextModelWithProjection")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    parts: dict[str, Any] = {"scheduler": EulerDiscreteScheduler(**schedule, steps_offset=1, **(spec.scheduler | scheduler))}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts["unet"] = UNet2DConditionModel(**spec.unet)
        parts["vae"] = AutoencoderKL(**VAE, scaling_factor=0.13025 if kind == "sdxl" else 0.18215)
        for name, settings, pad, kind_ in zip(names, spec.encoders, spec.pads, classes, strict=False):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(words, pad_token=pad)
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
            config = transformers.CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=77, **ends, **settings)
            parts[f"text_encoder{name}"] = getattr(transformers, kind_)(config)
            parts[f"tokenizer{name}"] = tokenizer
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                enliven(part)
    pipeline = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    return save(folder, pipeline, parts, {"force_zeros_for_empty_prompt": True} if kind == "sdxl" else {"requires_safety_checker": False})


def save(folder: Path, pipeline: str, parts: dict[str, Any], settings: dict[str, Any]) -> Path:
    """As the pipeline's own save_pretrained does; importing it costs seconds."""
    index: dict[str, object] = {"_class_name": pipeline, **settings}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    absent = ("feature_extractor", "image_encoder") if "text_encoder_2" in parts else ("feature_extractor", "safety_checker")
    (folder / "model_index.json").write_text(json.dumps(index | {name: [None, None] for name in absent}))
    return folder


def vocabulary(folder: Path) -> Path:
    """A small BPE vocabulary in CLIP's format; "!" is token 0, as in CLIP's own."""
    from emoji import tokenizer

    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        notes = folder.parent / "captions.json"
        notes.write_text(json.dumps([[words] for words in WORDS]))
        tokenizer.train(notes, folder)
    return folder


@torch.no_grad()
def enliven(module: torch.nn.Module) -> None:
    """Noise on everything that starts as zero or one, so that no layer is without effect."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter += 0.1 * torch.randn(parameter.shape)
