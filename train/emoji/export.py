"""The trained networks as a Stable Diffusion pipeline folder: what is shipped as the base `emoji`."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file

from emoji import networks, tokenizer

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(work: Path, output: Path) -> None:
    """Write the weight averages in fp16, with configs, tokenizer and schedule, into `output`."""
    average = torch.load(work / "unet-state.pt", weights_only=True)["average"]
    vocabulary = tokenizer.load(work / "tokenizer")
    unet = networks.unet()
    text = networks.text_encoder(len(vocabulary), vocabulary.bos_token_id, vocabulary.eos_token_id)
    for name, module in (("unet", unet), ("text_encoder", text)):
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in average.items() if k.startswith(f"{name}.")})
        module.half().save_pretrained(output / name)
    name_like_clip(output / "text_encoder" / "model.safetensors")
    AutoencoderKL.from_pretrained(work / "vae").half().save_pretrained(output / "vae")
    forget_path(output / "vae" / "config.json")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False, steps_offset=1).save_pretrained(output / "scheduler")
    shutil.copytree(work / "tokenizer", output / "tokenizer", dirs_exist_ok=True)
    (output / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    size = sum(f.stat().st_size for f in output.rglob("*") if f.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")


def name_like_clip(file: Path) -> None:
    """The level `text_model.` in the names, as Stable Diffusion has it; transformers 5 reads it but no longer writes it."""
    weights = load_file(file)
    save_file({f"text_model.{name.removeprefix('text_model.')}": value for name, value in weights.items()}, file, {"format": "pt"})


def forget_path(config: Path) -> None:
    """diffusers notes where a model was loaded from, which is nobody's business."""
    entries = json.loads(config.read_text())
    entries.pop("_name_or_path", None)
    config.write_text(json.dumps(entries, indent=2) + "\n")
