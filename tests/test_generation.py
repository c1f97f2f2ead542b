"""Pictures: what they depend on, and what they do not; the same picture as stock diffusers draws."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sdlora import apply, files
from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.generation import SAMPLERS, Request, draw, generate
from sdlora.kinds.lora import Lora
from sdlora.layers import named_layers

STEPS = 4
REQUESTS = [
    Request("a cat face", seed=1, steps=STEPS, guidance=5.0),
    Request("a dog, 3d emoji", seed=2, steps=STEPS, guidance=3.0),
    Request("the sun", seed=7, steps=STEPS, guidance=5.0),
    Request("a cat face", seed=9, steps=STEPS, guidance=8.0),
    Request("", seed=1, steps=STEPS, guidance=2.0),
]


def pixels(components, requests, *args, **settings) -> list[np.ndarray]:
    return [np.asarray(picture.image).astype(int) for picture in generate(components, requests, *args, **settings)]


def difference(one: list[np.ndarray], two: list[np.ndarray]) -> int:
    """The largest, in levels of 255."""
    return max(int(abs(a - b).max()) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def adapter(components) -> Adapter:
    """Random and strong enough to be seen: attention of the U-Net and of the text encoder."""
    generator = torch.Generator().manual_seed(5)
    names, layers = apply.select(components.modules, ["attention", "text_attention"]), named_layers(components.modules)

    def update(layer) -> Lora:
        out, inside = layer.weight.shape
        return Lora(torch.randn(4, inside, generator=generator) / 4, torch.randn(out, 4, generator=generator) / 8, 2.0)

    return Adapter({name: update(layers[name]) for name in names}, {})


@pytest.fixture(scope="module")
def plain(components) -> list[np.ndarray]:
    """REQUESTS, drawn one by one."""
    return pixels(components, REQUESTS, batch=1)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_a_picture_does_not_depend_on_its_batch(components, plain, batch: int):
    assert difference(pixels(components, REQUESTS, batch=batch), plain) == 0


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_its_latents_do_not_depend_on_its_batch_bit_for_bit(components, guidance: float):
    """One row and twenty, two rows and forty."""
    requests = [Request("a cat face", seed=seed, steps=2, guidance=guidance) for seed in range(20)]

    def latents(wanted: list[Request]) -> torch.Tensor:
        found = []
        list(generate(components, wanted, batch=len(wanted), callback=lambda state: found.append(state.x)))
        return found[-1]

    together = latents(requests)
    assert all(torch.equal(latents(requests[i : i + 1]), together[i : i + 1]) for i in (0, 7, 19))


@pytest.mark.parametrize("name", SAMPLERS)
def test_whatever_the_sampler_a_picture_does_not_depend_on_its_batch(components, name: str):
    requests = [Request("a cat face", seed=seed, steps=2, sampler=name) for seed in (4, 1)]
    alone, together = (pixels(components, requests, batch=batch) for batch in (1, 2))
    assert difference(alone, together) <= 1
    assert difference(alone[:1], alone[1:]) > 10


def test_requests_with_other_samplers_schedules_settings_or_noise_are_not_drawn_together(components):
    ways = [{}, {"schedule": "simple"}, {"sampler": "Euler a"}, {"sampler": "k_euler_a"}, {"sampler": "Euler a", "eta": 0.5}]
    requests = [Request("a cat face", seed=1, steps=2, **way) for way in [*ways, {"noise": "cuda"}]]
    rows = []
    with components.unet.register_forward_hook(lambda m, inputs, output: rows.append(len(inputs[0]) // 2)):
        drawn = pixels(components, requests)
    assert rows == [1, 1, 1, 1, 2, 2, 1, 1, 1, 1]  # the two names of Euler a are one sampler
    same = [(i, j) for i in range(6) for j in range(i) if difference(drawn[i : i + 1], drawn[j : j + 1]) == 0]
    assert same == [(3, 2)]


def test_a_picture_by_ddim_is_stock_diffusers(components, tiny_base):
    """Its first noise and its last level too, where Euler upon the same levels begins and ends elsewhere."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)  # its scheduler is DDIM, as Stable Diffusion 1.x has it
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe("a cat face", num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(1)).images
    ways = [{"sampler": "DDIM"}, {"sampler": "Euler", "schedule": "ddim"}]
    ours, other = (pixels(components, [Request("a cat face", seed=1, steps=3, **way)]) for way in ways)
    assert difference(ours, [np.asarray(image).astype(int) for image in theirs]) <= 1 < difference(ours, other)


def test_more_steps_than_the_schedule_has_levels_are_refused_before_drawing(components):
    with pytest.raises(SdloraError, match="steps is 51; the schedule lcm"):
        generate(components, [Request("a cat", steps=1), Request("a cat", steps=51, sampler="LCM")])


def test_alone_or_among_others_is_the_same_bit_for_bit_with_one_picture_a_batch(components, plain):
    assert difference(pixels(components, REQUESTS[2:3]), plain[2:3]) == 0


def test_the_timestep_is_embedded_once_for_the_whole_batch(components):
    rows = []
    with components.unet.time_embedding.register_forward_hook(lambda m, inputs, output: rows.append(len(output))):
        pixels(components, REQUESTS, batch=5)
    assert rows == [1] * STEPS


def test_pictures_come_in_the_order_of_their_requests_whatever_their_settings(components, plain):
    mixed = [REQUESTS[0], Request("a cat face", seed=1, steps=2), Request("a cat face", seed=1, steps=STEPS, width=96), REQUESTS[2]]
    pictures = list(generate(components, mixed))
    assert [picture.request for picture in pictures] == mixed
    assert [picture.image.size for picture in pictures] == [(64, 64), (64, 64), (96, 64), (64, 64)]
    assert difference([np.asarray(pictures[i].image).astype(int) for i in (0, 3)], [plain[0], plain[2]]) <= 1


@pytest.mark.parametrize("how", ["stacked", "fused"])
def test_strength_zero_is_the_base_bit_for_bit(components, plain, adapter, how: str):
    assert difference(pixels(components, REQUESTS[:1], [(adapter, 0.0)], how, batch=1), plain[:1]) == 0


@pytest.mark.parametrize("how", ["stacked", "fused"])
def test_the_caller_sees_the_base_between_pictures_and_afterwards(components, plain, adapter, how: str):
    for picture in generate(components, REQUESTS[:2], [(adapter, 1.0)], how, batch=1):
        assert difference([np.asarray(picture.image).astype(int)], plain[picture.request.seed - 1 : picture.request.seed]) > 10
        assert difference(pixels(components, REQUESTS[:1], batch=1), plain[:1]) == 0


def test_stacked_and_fused_draw_the_same_picture(components, adapter):
    ways = [pixels(components, REQUESTS[:2], [(adapter, 0.7), (adapter, -0.2)], how) for how in ("stacked", "fused")]
    assert difference(*ways) <= 1


def test_pictures_with_adapters_do_not_depend_on_their_batch(components, adapter):
    alone, together = (pixels(components, REQUESTS[:3], [(adapter, 0.7)], batch=batch) for batch in (1, 3))
    assert difference(alone, together) <= 1


def test_guidance_one_skips_the_unconditional_pass(components):
    rows = []
    with components.unet.register_forward_hook(lambda m, inputs, output: rows.append(len(inputs[0]))):
        one = pixels(components, [Request("a cat", seed=s, steps=2, guidance=1.0) for s in (1, 2)])
        near = pixels(components, [Request("a cat", seed=s, steps=2, guidance=1.0001) for s in (1, 2)])
    assert rows == [2, 2, 4, 4]
    assert difference(one, near) <= 2


def test_the_negative_prompt_acts_and_the_empty_one_is_the_default(components, plain):
    spoken = Request("a cat face", "a dog, pixel art", seed=1, steps=STEPS)
    assert difference(pixels(components, [spoken]), plain[:1]) > 2


def test_nothing_touches_the_global_generator_nor_gradients(components):
    before = torch.get_rng_state()
    pixels(components, [Request("a cat", steps=1)])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_the_consumer_is_not_in_inference_mode(components):
    for _ in generate(components, [Request("a cat", steps=1)]):
        assert not torch.is_inference_mode_enabled()


def test_the_callback_is_called_after_every_step(components):
    seen = []
    pixels(components, REQUESTS[:3], batch=2, callback=lambda state: seen.append((state.step, state.steps, len(state.x))))
    assert seen == [(i + 1, STEPS, n) for n in (2, 1) for i in range(STEPS)]


@pytest.mark.parametrize("how", ["stacked", "fused"])
def test_a_picture_of_nan_is_an_error_and_takes_the_adapters_off(components, plain, adapter, how: str):
    with pytest.raises(SdloraError, match="'a cat' with seed 3 turned into NaN"):
        pixels(components, [Request("a cat", seed=3, steps=1)], [(adapter, 1e38)], how)
    assert difference(pixels(components, REQUESTS[:1]), plain[:1]) == 0


def test_one_picture_of_nan_takes_none_of_the_others_along(components, plain):
    """Its guidance is beyond what fp32 holds; the others of its batch are given first, then the error, which names picture and step."""
    wanted = [REQUESTS[0], Request("a dog", seed=4, steps=STEPS, guidance=1e38), REQUESTS[2]]
    found = []
    with pytest.raises(SdloraError, match=f"'a dog' with seed 4 turned into NaN at step [1-{STEPS}] of {STEPS}"):
        for picture in generate(components, wanted, batch=3):
            found.append(np.asarray(picture.image).astype(int))
    assert difference(found, [plain[0], plain[2]]) <= 1


@pytest.mark.parametrize(("width", "height", "word"), [(63, 64, "width 63"), (64, 74, "height 74")])
def test_a_size_that_the_vae_cannot_draw_is_refused_before_drawing(components, width: int, height: int, word: str):
    with pytest.raises(SdloraError, match=f"{word} .* multiple of 4"):
        generate(components, [Request("a cat", width=width, height=height)])


def test_a_size_that_no_memory_holds_is_one_line_before_drawing(components):
    with pytest.raises(SdloraError, match=r"400000 × 400000 pixels takes at least [\d,.]+ GiB to decode, and [\d,.]+ GiB are free on cpu"):
        generate(components, [Request("a cat", width=400_000, height=400_000)])


WRONG = [{"steps": 0}, {"seed": -1}, {"guidance": -1.0}, {"guidance": float("nan")}, {"width": 0}]
WRONG += [{"sampler": "Eular"}, {"schedule": "karas"}, {"noise": "gpux"}, {"eta": 0.5}, {"s_churn": -1.0}, {"s_noise": 1.1}]


@pytest.mark.parametrize("field", WRONG)
def test_impossible_requests_are_refused_by_name(field: dict):
    with pytest.raises(SdloraError, match=next(iter(field))):
        Request("a cat", **field)


@pytest.mark.parametrize("settings", [{"apply": "fuse"}, {"batch": 0}])
def test_impossible_ways_of_drawing_are_refused_at_once(components, settings: dict):
    with pytest.raises(SdloraError):
        generate(components, [], **settings)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_draws_nearly_the_same_picture(tiny_base, plain, precision: str):
    request = REQUESTS[0]
    picture = next(draw(request.prompt, seeds=[1], base=tiny_base, device="cpu", precision=precision, steps=STEPS))
    assert abs(np.asarray(picture.image).astype(int) - plain[0]).mean() < 8


def test_five_lines_of_python_draw_with_adapters(components, tiny_base, adapter, tmp_path: Path):
    file = files.save(adapter, tmp_path / "style.safetensors")
    pictures = list(draw(["a cat face"], {file: 0.8}, seeds=[1, 2], base=tiny_base, device="cpu", steps=2))
    assert [p.request.seed for p in pictures] == [1, 2]
    expected = pixels(components, [Request("a cat face", seed=s, steps=2) for s in (1, 2)], [(adapter, 0.8)])
    assert difference([np.asarray(p.image).astype(int) for p in pictures], expected) == 0


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    """Stock diffusers, with the sampler that has our semantics: Euler over linearly spaced timesteps."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace", steps_offset=0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(pipe, request: Request) -> np.ndarray:
    generator = torch.Generator().manual_seed(request.seed)
    settings = {"num_inference_steps": request.steps, "guidance_scale": request.guidance, "negative_prompt": request.negative}
    return np.asarray(pipe(request.prompt, generator=generator, height=64, width=64, **settings).images[0]).astype(int)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_picture_is_the_one_of_stock_diffusers(components, pipeline, guidance: float):
    request = Request("a cat face, flat emoji", "a dog", seed=3, steps=10, guidance=guidance)
    assert difference(pixels(components, [request]), [stock(pipeline, request)]) <= 1


def test_with_an_adapter_the_picture_is_the_one_of_stock_diffusers_and_peft(components, pipeline, adapter, tmp_path: Path):
    request = Request("a cat face, flat emoji", seed=3, steps=10)
    files.save(adapter, tmp_path / "adapter.safetensors", "peft")
    base = stock(pipeline, request)
    pipeline.load_lora_weights(tmp_path, weight_name="adapter.safetensors", adapter_name="ours")
    pipeline.set_adapters(["ours"], [0.8])
    theirs = stock(pipeline, request)
    pipeline.unload_lora_weights()
    assert difference([theirs], [base]) > 10
    for how in ("stacked", "fused"):
        assert difference(pixels(components, [request], [(adapter, 0.8)], how), [theirs]) <= 1
