"""The reference: StableDiffusionPipeline as diffusers ships it, with PEFT for the adapters. Nothing else of sdlora uses it."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.generation import Request, noise
from sdlora.models import BUILT_IN


class Stock:
    """A pipeline of its own, with its own copy of the networks: PEFT wraps layers, and the base has to stay as it is."""

    def __init__(self, base: str, device: torch.device, dtype: torch.dtype):
        from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

        folder = Path(BUILT_IN.get(base, base))
        if not (folder / "model_index.json").is_file():
            raise SdloraError(
                f"the reference needs a base in diffusers' layout, {folder} is none; leave its conditions out (conditions=[…])"
            )
        with _quiet():
            self.pipeline: Any = StableDiffusionPipeline.from_pretrained(
                folder, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False, local_files_only=True
            ).to(device)
        self.pipeline.scheduler = EulerDiscreteScheduler.from_config(self.pipeline.scheduler.config, timestep_spacing="linspace")
        self.pipeline.set_progress_bar_config(disable=True)
        self.folder = tempfile.TemporaryDirectory(prefix="sdlora-benchmark-")
        self.saved: dict[int, Path] = {}
        self.peft = find_spec("peft") is not None

    def file(self, adapter: Adapter) -> Path:
        """`adapter` as a file with PEFT's names, written once."""
        if id(adapter) not in self.saved:
            path = Path(self.folder.name) / f"{len(self.saved)}.safetensors"
            self.saved[id(adapter)] = files.save(adapter, path, "peft")
        return self.saved[id(adapter)]

    def load(self, adapter: Adapter, name: str) -> None:
        path = self.file(adapter)
        with _quiet():  # or it warns every time that there is nothing for the text encoder
            self.pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)

    @contextmanager
    def carrying(self, weighted: Sequence[tuple[Adapter, float]], how: str | None) -> Iterator[Any]:
        """The pipeline with these adapters, and afterwards without: after fuse_lora up to PEFT's rounding, 1e-7 of a weight."""
        try:
            for i, (adapter, _) in enumerate(weighted):
                self.load(adapter, f"adapter{i}")
            if weighted:
                self.pipeline.set_adapters([f"adapter{i}" for i in range(len(weighted))], [eta for _, eta in weighted])
            if how == "fused":
                self.pipeline.fuse_lora()
            yield self.pipeline
        finally:
            if how == "fused":
                self.pipeline.unfuse_lora()
            if weighted:
                self.pipeline.unload_lora_weights()

    def draw(self, wanted: Sequence[Request]) -> list[Image.Image]:
        """The pictures of `wanted` in one batch, from the same noise as ours."""
        first, pipeline = wanted[0], self.pipeline
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        factor = pipeline.vae_scale_factor
        height, width = ((asked or side) // factor * factor for asked in (first.height, first.width))  # Request.floor; else it is even
        shape = (pipeline.unet.config.in_channels, height // factor, width // factor)
        return pipeline(
            prompt=[request.prompt for request in wanted],
            negative_prompt=[request.negative for request in wanted],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            height=height,
            width=width,
            latents=noise.drawn(noise.streams([request.seed for request in wanted], shape)).to(pipeline.unet.dtype),
        ).images


@contextmanager
def _quiet() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(level)
        logging.enable_progress_bar()
        diffusers_logging.enable_progress_bar()
