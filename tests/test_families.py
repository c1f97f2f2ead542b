"""Every family draws what stock diffusers draws: conditioning, prediction and sizes, on narrow bases of the true topology."""

import json
import shutil

import pytest
import torch

from sdlora import conditioning, generation, models
from sdlora.errors import SdloraError
from sdlora.generation import Request, conditions
from sdlora.generation.adapters import TextState
from sdlora.generation.schedules import schedule

STEPS = 4  # 999 / 3 is whole, so that diffusers' timesteps are the training's and both know their σ without interpolating
CLOSE = 1e-4  # of the latents' largest value, fp32: both walk the same steps, and differ by rounding


def pipeline(folder):
    """Stock diffusers, with the sampler that has our semantics: Euler over linearly spaced timesteps."""
    import diffusers

    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    given = {} if "XL" in kind else {"safety_checker": None}
    pipe = getattr(diffusers, kind).from_pretrained(folder, **given)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace", steps_offset=0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def stock(bases):
    from functools import cache

    return cache(lambda kind: pipeline(bases(kind)))


def theirs(pipe, request: Request, **settings) -> torch.Tensor:
    return pipe(
        request.prompt,
        negative_prompt=request.negative or None,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        height=request.height or 64,
        width=request.width or 64,
        output_type="latent",
        **settings,
    ).images


def ours(components, request: Request) -> torch.Tensor:
    last = []
    list(generation.generate(components, [request], callback=lambda state: last.append(state.x)))
    return last[-1]


def assert_same(one: torch.Tensor, two: torch.Tensor, close: float = CLOSE) -> None:
    assert torch.isfinite(two).all()
    assert (one - two).abs().max() <= close * two.abs().max()


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd2_v", "sdxl"])
@pytest.mark.parametrize("negative, guidance", [("", 5.0), ("a dog", 5.0), ("", 1.0)])
def test_the_latents_are_the_ones_of_stock_diffusers(loaded, stock, kind, negative, guidance):
    request = Request("a cat face, flat emoji", negative, seed=3, steps=STEPS, guidance=guidance)
    assert_same(ours(loaded(kind), request), theirs(stock(kind), request))


def test_sdxl_is_told_the_sizes_that_diffusers_tells_it(loaded, stock):
    plain = Request("a cat face", seed=3, steps=STEPS)
    request = Request("a cat face", seed=3, steps=STEPS, width=96, original=(512, 768), crop=(16, 128), target=(48, 80))
    told = {"original_size": (512, 768), "crops_coords_top_left": (16, 128), "target_size": (48, 80)}
    drawn = ours(loaded("sdxl"), request)
    assert drawn.shape == (1, 4, 8, 12)
    assert_same(drawn, theirs(stock("sdxl"), request, **told))
    assert not torch.allclose(ours(loaded("sdxl"), plain), ours(loaded("sdxl"), Request("a cat face", seed=3, steps=STEPS, crop=(0, 64))))


def test_zero_terminal_snr_draws_as_in_diffusers(bases, tmp_path):
    folder = shutil.copytree(bases("sd2_v"), tmp_path / "base")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}))
    request = Request("a cat face", seed=3, steps=STEPS)
    components = models.load(folder)
    assert components.alphas_bar[-1] == 0
    assert schedule("uniform", components.alphas_bar, 4).sigmas[0] == pytest.approx(4096, rel=1e-6)
    assert_same(ours(components, request), theirs(pipeline(folder), request))


def test_without_zeros_for_empty_the_negative_prompt_is_an_encoded_empty_one(bases, loaded, tmp_path):
    folder = shutil.copytree(bases("sdxl"), tmp_path / "base")
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_zeros_for_empty_prompt": False}))
    components = models.load(folder)
    request = Request("a cat face", seed=3, steps=STEPS)
    drawn = ours(components, request)
    assert_same(drawn, theirs(pipeline(folder), request))
    assert not torch.allclose(drawn, ours(loaded("sdxl"), request), rtol=1e-3)
    absent = conditioning.encode_absent(loaded("sdxl"))
    assert not absent.context.any() and absent.pooled is not None and not absent.pooled.any()


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_prompts_are_encoded_as_in_diffusers(loaded, stock, kind):
    components, pipe = loaded(kind), stock(kind)
    prompt = "a cat! face " * 30  # longer than 77 tokens, and with the token that some of the tokenizers pad with
    hint = conditioning.encode_text(components, [prompt, "a dog"])
    if kind == "sdxl":
        context, _, pooled, _ = pipe.encode_prompt([prompt, "a dog"], device="cpu", do_classifier_free_guidance=False)
        torch.testing.assert_close(hint.pooled, pooled)
    else:
        context, _ = pipe.encode_prompt([prompt, "a dog"], "cpu", 1, False)
        assert hint.pooled is None
    torch.testing.assert_close(hint.context, context)


def test_sizes_are_refused_where_they_cannot_act(loaded):
    with pytest.raises(SdloraError, match="act on SDXL alone"):
        generation.generate(loaded("sd1"), [Request("a cat", crop=(8, 8))])
    with pytest.raises(SdloraError, match="original is"):
        Request("a cat", original=(0, 8))


def test_sdxl_reads_the_last_layer_but_one_whatever_the_clip_skip_and_refuses_what_it_cannot_do(loaded):
    base = loaded("sdxl")
    plain = ours(base, Request("a cat face", seed=3, steps=STEPS))
    assert torch.equal(plain, ours(base, Request("a cat face", seed=3, steps=STEPS, clip_skip=2)))
    with pytest.raises(SdloraError, match="always reads the last layer but one"):
        ours(base, Request("a cat face", seed=3, steps=STEPS, clip_skip=3))


def test_sdxls_pooled_vector_is_the_one_of_the_first_chunk(loaded):
    base = loaded("sdxl")
    texts = conditions.Texts(base, base.device)
    plain = TextState((), lambda: None)
    first = texts.timed("a cat", Request("a cat", steps=STEPS), plain, (STEPS, 0)).at(0)
    both = texts.timed("a cat BREAK a dog", Request("a cat", steps=STEPS), plain, (STEPS, 0)).at(0)
    assert both.context.shape[1] == 2 * 77 and torch.equal(both.context[:, :77], first.context)
    assert torch.equal(both.pooled, first.pooled)
    assert torch.equal(first.context, conditioning.encode_text(base, ["a cat"]).context)
