"""Hires pictures, whose second pass is img2img, and sizes that the U-Net does not halve evenly."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from sdlora.errors import SdloraError
from sdlora.generation import Request, generate, steps
from sdlora.generation.passes import passes, size
from sdlora.generation.upscale import UPSCALERS, upscaler
from sdlora.prompts import schedule

ROOT = Path(__file__).parents[1]


def drawn(components, *requests: Request, **settings) -> list[np.ndarray]:
    return [np.asarray(picture.image).astype(int) for picture in generate(components, requests, **settings)]


def difference(one: np.ndarray, two: np.ndarray) -> int:
    assert one.shape == two.shape
    return int(abs(one - two).max())


def request(**settings) -> Request:
    return Request(**{"prompt": "a cat face", "seed": 3, "steps": 3} | settings)


def stock(pipe, request: Request, **settings) -> np.ndarray:
    from diffusers import EulerDiscreteScheduler

    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace", steps_offset=0)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(request.seed)
    return np.asarray(pipe(request.prompt, generator=generator, guidance_scale=request.guidance, **settings).images[0]).astype(int)


def test_with_a_pixel_upscaler_the_second_pass_is_img2img_of_the_enlarged_picture_bit_for_bit(components):
    hires = drawn(components, request(hires=1.5, hires_denoise=0.5, hires_steps=2, hires_upscaler="lanczos"))[0]
    first = next(generate(components, [request()])).image.resize((96, 96), Image.Resampling.LANCZOS)
    assert difference(hires, drawn(components, request(steps=2, init=first, denoise=0.5, exact_steps=True))[0]) == 0


def test_with_latents_enlarged_the_second_pass_is_stock_diffusers_img2img_of_them(components, tiny_base):
    from diffusers import StableDiffusionImg2ImgPipeline

    wanted = request(hires=2.0, hires_denoise=0.5, hires_upscaler="Latent (nearest)")
    ends: list[torch.Tensor] = []
    drawn(components, request(), callback=lambda state: ends.append(state.x))
    latents = functional.interpolate(ends[-1], scale_factor=2, mode="nearest")
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_base, safety_checker=None)
    theirs = stock(pipe, wanted, image=latents, strength=0.5, num_inference_steps=6)
    assert difference(drawn(components, wanted)[0], theirs) <= 1


def test_steps_count_through_both_passes_and_only_those_of_the_second_are_larger(components):
    wanted, seen = request(hires=1.5, hires_steps=2, sampler="Euler a"), []
    drawn(components, wanted, callback=lambda state: seen.append((state.step, state.steps, state.x.shape[-1])))
    assert seen == [(1, 5, 16), (2, 5, 16), (3, 5, 16), (4, 5, 24), (5, 5, 24)]
    assert steps(components, wanted) == 5


def test_a_hires_picture_does_not_depend_on_its_batch(components):
    """Measured: bit for bit. One level is allowed for kernels of other machines."""
    settings = {"steps": 2, "hires": 1.5, "sampler": "DPM++ 2M SDE"}
    ways = [request(seed=s, variation_seed=9, variation_strength=v, **settings) for s, v in ((1, 0.2), (2, 0.0), (1, 0.9))]
    rows: list[int] = []
    together = drawn(components, *ways, batch=3, callback=lambda state: rows.append(len(state.x)))
    assert set(rows) == {3}
    assert max(difference(a, b) for a, b in zip(together, drawn(components, *ways, batch=1), strict=True)) <= 1
    assert difference(together[0], together[2]) > 10


def test_the_batch_is_as_large_as_the_larger_pass_allows(components):
    rows: list[int] = []
    ways = [request(seed=s, steps=1, guidance=1.0, hires=2.0, hires_steps=1) for s in range(4)]
    drawn(components, *ways, callback=lambda state: rows.append(len(state.x)))
    assert rows == [1, 1] * 4


def test_prompts_go_on_counting_in_the_second_pass():
    """As AUTOMATIC1111 since 1.6: a fraction goes on from 1.0, a step from the number of the first pass's."""
    for when, until in (("1.5", 5), ("25", 5)):
        assert schedule(f"a [cat:dog:{when}]", 10, 20) == [(until, "a cat"), (10, "a dog")]
    for when in ("0.5", "1.0", "12"):
        assert schedule(f"a [cat:dog:{when}]", 10, 20) == [(10, "a dog")]


def test_what_comes_in_the_second_pass_of_a_prompt_is_drawn_then(components):
    plain, late, never = (request(prompt=p, hires=1.5, hires_denoise=0.9) for p in ("a cat", "a [cat:dog:1.0]", "a [cat:dog:2.0]"))
    one, two, three = drawn(components, plain, late, never)
    assert difference(one, two) > 2 and difference(one, three) == 0


@pytest.mark.parametrize(("hires", "expected"), [(2.0, (128, 128)), (1.3, (80, 80)), (1.0, (64, 64))])
def test_the_enlarged_size_is_rounded_down_to_whole_latents(components, hires: float, expected: tuple[int, int]):
    assert passes(components, request(hires=hires))[1].size == expected


def test_upscalers_are_found_by_a1111s_names_and_by_plain_ones():
    assert all(upscaler(name) is row for name, row in UPSCALERS.items())
    assert upscaler("latent-nearest-exact") is UPSCALERS["Latent (nearest-exact)"] and upscaler("LANCZOS") is UPSCALERS["Lanczos"]
    with pytest.raises(SdloraError, match="did you mean latent-bicubic"):
        upscaler("latent-bicubc")


@pytest.mark.parametrize("kind", ["emoji", "sd1"])
def test_a_size_that_the_unet_halves_unevenly_is_drawn_as_stock_diffusers_does(components, loaded, tiny_base, bases, kind: str):
    """72 × 88: 18 × 22 latents for emoji, whose U-Net wants multiples of 4; 9 × 11 for Stable Diffusion, whose wants multiples of 8."""
    from diffusers import StableDiffusionPipeline

    base, folder = (components, tiny_base) if kind == "emoji" else (loaded(kind), bases(kind))
    wanted = request(width=88, height=72, guidance=4.0)
    theirs = stock(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None), wanted, width=88, height=72, num_inference_steps=3)
    assert difference(drawn(base, wanted)[0], theirs) <= 1


@pytest.mark.parametrize("extent", [(4, 4), (68, 60), (4, 100)])
def test_every_multiple_of_the_factor_is_drawn_alone_or_in_a_batch(components, random_adapter, extent: tuple[int, int]):
    adapter = random_adapter(components.modules)
    ways = [request(steps=2, seed=s, width=extent[0], height=extent[1]) for s in (1, 2)]
    together, alone = (drawn(components, *ways, weighted=[(adapter, 0.5)], batch=b) for b in (2, 1))
    assert together[0].shape == (extent[1], extent[0], 3)
    assert max(difference(a, b) for a, b in zip(together, alone, strict=True)) <= 1


def test_floor_rounds_down_as_a1111_does_and_nothing_else_is_rounded(components, loaded):
    assert size(loaded("sd1"), Request("", width=1024, height=1500, floor=True)) == (1496, 1024)  # the published benchmark's size
    assert size(loaded("sd1"), Request("", width=1024, height=1496)) == (1496, 1024)
    with pytest.raises(SdloraError, match="height 1500 .* multiple of 8, 1504 for example; or set floor, which rounds it down to 1496"):
        size(loaded("sd1"), Request("", width=1024, height=1500))


def test_the_published_benchmarks_settings_are_those_of_a_picture_that_can_be_drawn(loaded):
    from sdlora.benchmark.config import BenchmarkConfig
    from sdlora.benchmark.measure import requests

    settings = tomllib.loads((ROOT / "configs" / "benchmark-table2.toml").read_text(encoding="utf-8"))
    config = BenchmarkConfig(**settings)
    assert {size(loaded("sd1"), wanted) for wanted in requests(config, "a cat", 1)} == {(1496, 1024)}


def test_sdxl_is_told_the_size_of_each_pass(loaded):
    told = []
    base = loaded("sdxl")
    with base.unet.register_forward_pre_hook(
        lambda m, inputs, words: told.append(words["added_cond_kwargs"]["time_ids"][0].tolist()), with_kwargs=True
    ):
        drawn(base, request(steps=1, hires=2.0, hires_steps=1, hires_denoise=0.5))
    assert told == [[64, 64, 0, 0, 64, 64], [128, 128, 0, 0, 128, 128]]
