"""A tiny random base model in diffusers' layout, made with the networks and the tokenizer of the embedded base's recipe."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach for a network
ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "train"))  # the recipe's modules, as `python train/base.py` sees them

WORDS = ["a cat face, flat emoji", "a dog, 3d emoji", "a red apple, noto emoji", "a robot, pixel art", "the sun, line drawing"]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that StableDiffusionPipeline.from_pretrained reads; every weight random and none zero."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def components(tiny_base: Path):
    """`tiny_base`, loaded. Shared: a test that puts something on it takes it off again."""
    from sdlora import models

    return models.load(tiny_base)


def write_base(folder: Path, seed: int = 0) -> Path:
    from diffusers import DDIMScheduler

    from emoji import networks, tokenizer

    notes = folder.parent / "captions.json"
    notes.write_text(json.dumps([[words] for words in WORDS]))
    tokenizer.train(notes, folder.parent / "vocabulary")
    words = tokenizer.load(folder.parent / "vocabulary")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, vae = networks.unet(), networks.vae()
        text_encoder = networks.text_encoder(len(words), words.bos_token_id, words.eos_token_id)
        for module in (unet, vae, text_encoder):
            enliven(module)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": words, "scheduler": scheduler}
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    for name, part in parts.items():  # the pipeline's own save_pretrained does the same; importing it costs seconds
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index | {"safety_checker": [None, None], "feature_extractor": [None, None]}))
    return folder


@torch.no_grad()
def enliven(module: torch.nn.Module) -> None:
    """Noise on everything that starts as zero or one, so that no layer is without effect."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter += 0.1 * torch.randn(parameter.shape)


@pytest.fixture
def random_adapter():
    """A function (modules, targets, rank, alpha, seed, size) -> Adapter with random A and B: one that does change something."""
    from sdlora.adapter import Adapter
    from sdlora.apply import select
    from sdlora.kinds.lora import Lora
    from sdlora.layers import named_layers

    def make(modules, targets=("attention",), rank=4, alpha=2.0, seed=0, size=0.1, metadata=None) -> Adapter:
        layers, generator = named_layers(modules), torch.Generator().manual_seed(seed)

        def update(i: int, name: str) -> Lora:
            out, *rest = layers[name].weight.shape
            r = rank(i) if callable(rank) else rank
            a = torch.randn((r, *rest), generator=generator) * size
            b = torch.randn((out, r, *(1 for _ in rest[1:])), generator=generator) * size
            return Lora(a, b, float(alpha(i) if callable(alpha) else alpha))

        return Adapter({name: update(i, name) for i, name in enumerate(select(modules, targets))}, metadata or {})

    return make


@pytest.fixture(scope="session")
def predict():
    """A function components -> the U-Net's output (2, 4, 8, 8) for one fixed noisy latent and two prompts."""
    from sdlora import models

    @torch.no_grad()
    def run(components) -> torch.Tensor:
        context = models.encode_text(components, ["a cat face", "a dog"])
        x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5)).to(components.dtype)
        return components.unet(x, torch.tensor([400, 700]), context).sample

    return run
