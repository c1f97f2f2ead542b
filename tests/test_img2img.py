"""Pictures from pictures: img2img and inpainting against their laws and stock diffusers."""

import numpy as np
import pytest
import torch
from folders import noise
from PIL import Image

from sdlora.data.pictures import to_tensor
from sdlora.errors import SdloraError
from sdlora.generation import Request, canvas, generate, starts
from sdlora.generation.denoiser import keeping
from sdlora.generation.passes import img2img, size
from sdlora.generation.sampler import sample
from sdlora.generation.samplers import method
from sdlora.generation.schedules import schedule
from sdlora.latents import decode, encode_image
from sdlora.schedule import alphas_bar

PHOTO, OTHER = noise(64, 64, seed=7), noise(64, 64, seed=8)
HALF = Image.new("L", (64, 64))
HALF.paste(255, (32, 0, 64, 64))
WHITE, BLACK = Image.new("L", (64, 64), 255), Image.new("L", (64, 64))


def drawn(components, *requests: Request, **settings) -> list[np.ndarray]:
    return [np.asarray(picture.image).astype(int) for picture in generate(components, requests, **settings)]


def request(**settings) -> Request:
    return Request(**{"prompt": "a cat face", "seed": 3, "steps": 4, "init": PHOTO, "denoise": 0.4} | settings)


@torch.no_grad()
def round_trip(components, image: Image.Image = PHOTO) -> np.ndarray:
    pixels = decode(components, encode_image(components, to_tensor(image)[None]))[0]
    return ((pixels / 2 + 0.5) * 255).round().permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize(
    ("steps", "denoise", "exact", "levels", "drawn"),
    [
        (20, 0.75, False, 20, 16),  # worked out by hand from A1111's setup_img2img_steps and sigmas[steps - t_enc - 1:]
        (20, 0.5, False, 20, 11),
        (20, 1.0, False, 20, 20),
        (20, 0.01, False, 20, 1),
        (1, 1.0, False, 1, 1),
        (20, 0.5, True, 40, 20),
        (20, 0.7, True, 28, 20),
        (20, 1.0, True, 20, 20),
        (20, 0.0, False, 20, 0),
    ],
)
def test_the_steps_that_are_drawn_are_a1111s(steps: int, denoise: float, exact: bool, levels: int, drawn: int):
    one = img2img((64, 64), steps, denoise, exact)
    assert (one.levels, one.steps) == (levels, drawn)


def test_denoise_zero_is_what_the_vae_makes_of_the_picture_bit_for_bit(components):
    """Unpacked, as `round_trip` decodes: packed convolutions round differently."""
    assert (drawn(components, request(denoise=0.0), pack=False)[0] == round_trip(components)).all()


def test_the_less_denoise_the_nearer_the_picture_stays(components):
    """At 0.01 one step from the lowest level, whose noise is 0.03 of the latents' scale; random networks make much of it."""
    distances = [abs(d - round_trip(components)).mean() for d in drawn(components, *(request(denoise=x) for x in (0.01, 0.4, 1.0)))]
    assert distances[0] < distances[1] < distances[2] and distances[0] < distances[2] / 2


def test_denoise_one_is_a_picture_from_noise_but_for_the_init_latents(components):
    """With latents of nothing it is that picture, bit for bit."""
    plain = drawn(components, Request("a cat face", seed=3, steps=4))[0]
    assert (drawn(components, request(denoise=1.0, mask=WHITE, masked_content="nothing"))[0] == plain).all()


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    """Stock diffusers with Euler over linearly spaced timesteps, whose noise and start are ours."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace", steps_offset=0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("denoise", "exact", "levels", "strength"), [(0.5, False, 4, 0.75), (1.0, False, 4, 1.0), (0.5, True, 8, 0.5)])
def test_img2img_is_that_of_stock_diffusers(components, pipeline, denoise: float, exact: bool, levels: int, strength: float):
    """diffusers runs int(steps · strength) steps and A1111 one more; diffusers is given the latents, since it draws from the posterior."""
    wanted = request(denoise=denoise, exact_steps=exact, negative="a dog", guidance=5.0)
    theirs = pipeline(
        wanted.prompt,
        image=encode_image(components, to_tensor(PHOTO)[None]),
        negative_prompt="a dog",
        strength=strength,
        num_inference_steps=levels,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert abs(drawn(components, wanted)[0] - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize("sampler", ["UniPC", "Euler a", "DPM++ SDE"])
def test_an_all_white_mask_is_img2img_bit_for_bit(components, sampler: str):
    plain, white = drawn(components, request(sampler=sampler), request(sampler=sampler, mask=WHITE))
    assert (plain == white).all()


def test_an_all_black_mask_returns_the_picture_bit_for_bit(components):
    assert (drawn(components, request(mask=BLACK))[0] == np.asarray(PHOTO)).all()


@pytest.mark.parametrize("content", ["original", "fill", "noise", "nothing"])
@pytest.mark.parametrize("blur", [0.0, 2.0])
def test_outside_of_the_mask_not_a_bit_changes_and_inside_it_does(components, content: str, blur: float):
    found = drawn(components, request(mask=HALF, mask_blur=blur, masked_content=content))[0]
    reach = int(2.5 * blur + 0.5)
    assert (found[:, : 32 - reach] == np.asarray(PHOTO)[:, : 32 - reach]).all()
    assert (found[:, 32:] != np.asarray(PHOTO)[:, 32:]).mean() > 0.9
    if blur:
        assert (found[:, 32 - reach : 32] != np.asarray(PHOTO)[:, 32 - reach : 32]).any()


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M"])
def test_latents_outside_of_the_mask_are_the_noised_original_at_every_step(components, sampler: str):
    """x − original = σ n with one n: the same direction throughout, in the proportions of the levels, and nothing at the end."""
    original, states = encode_image(components, to_tensor(PHOTO)[None])[..., :8], []
    drawn(
        components, request(mask=HALF, mask_blur=0.0, sampler=sampler, denoise=1.0), callback=lambda state: states.append(state.x[..., :8])
    )
    noise = torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(3))[None, ..., :8]
    name = "uniform" if sampler == "Euler" else "karras"
    for sigma, x in zip(schedule(name, components.alphas_bar, 4).sigmas[1:], states, strict=True):
        torch.testing.assert_close(x, original + sigma * noise, rtol=1e-5, atol=2e-5)


def test_the_masked_content_is_the_picture_or_its_surroundings_or_the_seeds_noise_or_nothing(components):
    """As in AUTOMATIC1111 the kept latents beside noise and nothing are those of the filled picture."""
    contents = ("original", "fill", "noise", "nothing")
    ways = [request(mask=HALF, mask_blur=0.0, masked_content=content, seed=8) for content in contents]
    begun = [starts.start(components, starts.origin(components, way)) for way in ways]
    original, fill, noise, nothing = starts.originals(ways, begun)
    assert torch.equal(original, encode_image(components, to_tensor(PHOTO)[None])[0])
    assert torch.equal(fill, encode_image(components, to_tensor(canvas.filled(PHOTO, HALF))[None])[0])
    assert all(torch.equal(x[..., :8], fill[..., :8]) for x in (noise, nothing))
    assert torch.equal(noise[..., 8:], torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(8))[..., 8:])
    assert not nothing[..., 8:].any()


def test_under_a_soft_mask_grey_is_redrawn_in_its_share_of_the_last_steps(components):
    """Half grey, four steps: three of them, as img2img from the second level does, to the rounding of a step more."""
    grey = Image.new("L", (64, 64), 128)
    soft, three = drawn(components, request(mask=grey, soft_mask=True, denoise=1.0), request(denoise=0.5))
    assert abs(soft - three).max() <= 1
    hard, whole = drawn(components, request(mask=grey, denoise=1.0), request(denoise=1.0))
    assert (hard == whole).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [("Euler", {}), ("Euler", {"s_churn": 2.0}), ("Heun", {}), ("DPM2", {}), ("DPM++ 2S a", {}), ("UniPC", {})],
    ids=str,
)
def test_a_place_is_let_go_when_so_much_is_left_of_the_steps_whatever_the_sampler_asks_between(name: str, options: dict):
    """Of four steps a quarter, a half and all, in every call of a step: Heun's second one too, which is for the next step's σ."""
    redrawn = torch.tensor([0.0, 0.25, 0.3, 0.5, 0.51, 1.0]).view(1, 1, 1, 6)
    begun, free = 1, set()
    ask = keeping(lambda x, sigma, t: torch.ones_like(x), redrawn, torch.zeros(1, 4, 1, 6), 4, lambda: begun)

    def asked(x, sigma: float, t: float):
        denoised = ask(x, sigma, t)
        free.add((begun, *denoised[0, 0, 0].nonzero().flatten().tolist()))
        return denoised

    def after(state) -> None:
        nonlocal begun
        begun = state.step + 1

    way, draws = method(name, "uniform", options), torch.Generator().manual_seed(0)
    levels = schedule("uniform", alphas_bar(), 4, way.sampler.discard)
    sample(way, asked, torch.ones(1, 4, 1, 6), levels, lambda *step: torch.randn((1, 4, 1, 6), generator=draws), after)
    assert sorted(free) == [(1, 5), (2, 4, 5), (3, 2, 3, 4, 5), (4, 1, 2, 3, 4, 5)]


def test_only_masked_draws_the_part_at_full_size_and_leaves_the_rest(components):
    """A corner of a larger picture, with 8 pixels around it: what is drawn is as large as the base likes it, the result as the picture."""
    photo = noise(140, 100, seed=9)
    corner = Image.new("L", photo.size)
    corner.paste(255, (10, 20, 34, 44))
    shapes: list[torch.Size] = []
    wanted = request(init=photo, mask=corner, mask_blur=0.0, only_masked=8)
    found = drawn(components, wanted, callback=lambda state: shapes.append(state.x.shape))[0]
    inside = np.asarray(corner) == 255
    assert found.shape == (100, 140, 3) and shapes[0] == (1, 4, 16, 16)
    assert (found[~inside] == np.asarray(photo)[~inside]).all() and (found[inside] != np.asarray(photo)[inside]).mean() > 0.9


def test_a_picture_from_a_picture_does_not_depend_on_its_batch(components):
    """Measured: bit for bit. One level is allowed for kernels of other machines, whose rounding may depend on the batch."""
    ways = [
        request(),
        request(init=OTHER, seed=4),
        request(mask=HALF),
        request(init=OTHER, mask=HALF, mask_blur=0.0, masked_content="noise", seed=5, guidance=3.0),
        request(variation_seed=8, variation_strength=0.3),
    ]
    rows: list[int] = []
    together = drawn(components, *ways, batch=5, callback=lambda state: rows.append(len(state.x)))
    assert set(rows) == {5}
    assert max(abs(a - b).max() for a, b in zip(together, drawn(components, *ways, batch=1), strict=True)) <= 1


def test_an_ancestral_sampler_draws_from_the_same_stream_in_or_out_of_a_batch(components):
    ways = [request(sampler="Euler a", seed=s, ensd=d) for s, d in ((1, 0), (2, 31337), (3, 5))]
    together, alone = (drawn(components, *ways, batch=b) for b in (3, 1))
    assert max(abs(a - b).max() for a, b in zip(together, alone, strict=True)) <= 1
    assert abs(together[1] - drawn(components, request(sampler="Euler a", seed=2))[0]).max() > 2


@pytest.mark.parametrize(
    ("extent", "asked", "expected"),
    [
        ((64, 64), {}, (64, 64)),
        ((67, 101), {}, (64, 100)),
        ((200, 100), {"width": 64}, (128, 64)),
        ((200, 100), {"height": 64}, (64, 32)),
        ((200, 100), {"width": 40, "height": 44}, (44, 40)),
        ((2, 2), {}, (4, 4)),
        ((200, 100), {"mask": Image.new("L", (100, 200), 255), "only_masked": 4}, (64, 64)),
    ],
)
def test_the_size_is_the_init_pictures_where_none_is_asked_for(components, extent, asked: dict, expected: tuple[int, int]):
    assert size(components, request(init=Image.new("RGB", extent[::-1]), **asked)) == expected


def test_a_file_and_the_same_picture_in_memory_draw_the_same(components, tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    one, two = drawn(components, request(), request(init=tmp_path / "photo.png"))
    assert (one == two).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": None}, "denoise has no effect without init"),
        ({"init": None, "denoise": None, "mask": HALF}, "mask has no effect without init"),
        ({"mask_blur": 2.0}, "mask_blur has no effect without mask"),
        ({"masked_content": "noise"}, "masked_content has no effect without mask"),
        ({"soft_mask": True}, "soft_mask has no effect without mask"),
        ({"hires_steps": 4}, "hires_steps has no effect without hires"),
        ({"variation_seed": 4}, "variation_seed has no effect without variation_strength"),
        ({"variation_strength": 0.4}, "variation_strength has no effect without variation_seed"),
        ({"hires": 2.0}, "hires is for pictures from noise"),
        ({"denoise": 1.5}, "denoise is 1.5"),
        ({"resize": "cut"}, "unknown resize 'cut'"),
        ({"mask": HALF, "masked_content": "nois"}, "did you mean noise"),
        ({"background": "rde"}, "background is 'rde'.*did you mean red"),
        ({"ensd": 31337}, "ensd has no effect with the sampler Euler"),
        ({"ensd": 31337, "sampler": "DPM++ 2M SDE"}, "ensd has no effect"),
        ({"ensd": -9, "sampler": "Euler a"}, "seed 3 with ensd -9"),
        ({"variation_seed": -1, "variation_strength": 0.1}, "variation_seed is -1"),
    ],
)
def test_what_has_no_effect_or_is_out_of_range_is_refused(settings: dict, message: str):
    with pytest.raises(SdloraError, match=message):
        request(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "nowhere.png"}, "there is no picture nowhere.png"),
        ({"mask": Image.new("L", (8, 8))}, "the mask .* 8 × 8 pixels"),
        ({"mask": BLACK, "only_masked": 4}, "nothing white"),
        ({"width": 65}, "width 65 .* multiple of 4, 64 for example"),
        ({"denoise": 0.001, "exact_steps": True, "schedule": "simple"}, "4 steps with so little denoise are the last of 4000 levels"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is(components, settings: dict, message: str):
    with pytest.raises(SdloraError, match=message):
        generate(components, [request(), request(**settings)])
