"""Noise: from its own seed alone; Philox against published vectors; Brownian paths against torchsde and Brown's laws."""

import numpy as np
import pytest
import torch
from k_diffusion_oracle import sampling as kd

from sdlora.errors import SdloraError
from sdlora.generation import noise, philox
from sdlora.generation.schedules import schedule
from sdlora.schedule import alphas_bar

SHAPE = (4, 8, 8)
KNOWN = [  # Random123's known answers, tests/kat_vectors: philox4x32 10, counter, key, output
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, answer: str):
    found = philox.philox(np.array(words(counter), np.uint32).repeat(3).reshape(4, 3), tuple(words(key)))
    assert (found == np.array(words(answer), np.uint32)[:, None]).all()


def test_the_first_normal_numbers_of_seed_0_are_those_that_a1111_documents_for_cuda():
    """modules/rng_philox.py: randn(3, 4) with seed 0. Its own formula, which is ours, is 2.4e-7 from them: the GPU computes in fp32."""
    documented = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    torch.testing.assert_close(philox.normal(0, (3, 4)), torch.tensor(documented), rtol=0, atol=5e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_philox_is_what_the_gpu_draws():
    for seed in (0, 12345, 2**40 + 7):
        generator = torch.Generator("cuda").manual_seed(seed)
        stream = philox.stream(seed, (4, 64, 64))
        for _ in range(3):
            theirs = torch.randn((4, 64, 64), generator=generator, device="cuda").cpu()
            torch.testing.assert_close(next(stream), theirs, rtol=0, atol=1e-5)


def test_philox_normal_numbers_are_standard_normal_and_differ_by_seed_and_offset():
    one = philox.normal(7, (100_000,)).double()
    assert (
        abs(one.mean()) < 0.01 and one.var().item() == pytest.approx(1, abs=0.02) and (one**4).mean().item() == pytest.approx(3, abs=0.15)
    )
    others = [philox.normal(8, (100_000,)), philox.normal(7 + 2**32, (100_000,)), philox.normal(7, (100_000,), offset=1)]
    assert all(abs(torch.corrcoef(torch.stack([one, other.double()]))[0, 1]) < 0.02 for other in others)


@pytest.mark.parametrize("source", noise.SOURCES)
def test_a_stream_depends_on_the_pictures_own_seed_alone_and_leaves_the_global_generator_untouched(source: str):
    before = torch.get_rng_state()
    together, alone = noise.streams([3, 1, 2], SHAPE, source), noise.streams([1], SHAPE, source)
    first, second, again = noise.drawn(together), noise.drawn(together), noise.drawn(alone)
    assert torch.equal(first[1], again[0]) and torch.equal(second[1], noise.drawn(alone)[0])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.float32


def test_the_cpu_stream_is_torchs_generator():
    generator, stream = torch.Generator().manual_seed(1), noise.streams([1], SHAPE)
    for _ in range(3):
        assert torch.equal(noise.drawn(stream)[0], torch.randn(SHAPE, generator=generator))


@pytest.mark.parametrize("source", noise.SOURCES)
def test_noise_between_levels_depends_on_the_pictures_own_seed_alone(source: str):
    sigmas = schedule("karras", alphas_bar(), 5).sigmas.tolist()
    together, alone = noise.between([3, 1], SHAPE, sigmas, source), noise.between([1], SHAPE, sigmas, source)
    for pair in zip(sigmas[:-2], sigmas[1:-1], strict=True):
        assert torch.equal(together(*pair)[1], alone(*pair)[0])
        assert not torch.equal(together(*pair)[0], alone(*pair)[0])


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
def test_brownian_noise_is_k_diffusions_with_torchsde(seed: int):
    levels = schedule("karras", alphas_bar(), 12).sigmas
    x = torch.zeros(1, *SHAPE)
    theirs = kd.BrownianTreeNoiseSampler(x, levels[-2], levels[0], seed=[seed])
    ours = noise.between([seed], SHAPE, levels.tolist())
    points = levels[:-1].tolist()
    for sigma, after in [*zip(points, points[1:], strict=False), (points[0], (points[0] * points[1]) ** 0.5), (points[2], points[7])]:
        torch.testing.assert_close(ours(sigma, after), theirs(torch.tensor(sigma), torch.tensor(after)), rtol=0, atol=1e-5)


def test_increments_add_up_and_another_number_of_steps_walks_the_same_path():
    fine, coarse = ([14.6 - i * 14.5 / n for i in range(n + 1)] for n in (8, 2))
    one, other = noise.between([5], SHAPE, fine), noise.between([5], SHAPE, coarse)
    for a, b in zip(coarse, coarse[1:], strict=False):
        parts = [s for s in fine if b <= s <= a]
        total = sum(one(s, t) * (s - t) ** 0.5 for s, t in zip(parts, parts[1:], strict=False))
        torch.testing.assert_close(total, other(a, b) * (a - b) ** 0.5, rtol=0, atol=1e-5)


def test_increments_are_standard_normal_and_independent_where_intervals_do_not_overlap():
    sigmas = [10.0, 6.5, 1.25, 0.01]
    path = noise.between([9], (50_000,), sigmas)
    draws = torch.stack([path(a, b)[0] for a, b in zip(sigmas, sigmas[1:], strict=False)]).double()
    torch.testing.assert_close(draws @ draws.T / 50_000, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.03)
    assert draws.mean(1).abs().max() < 0.02


@pytest.mark.parametrize(("text", "name"), [("cpu", "cpu"), ("GPU", "cuda"), ("NV", "cuda"), ("cuda", "cuda")])
def test_sources_have_a1111s_names(text: str, name: str):
    assert noise.source_name(text) == name


def test_an_unknown_source_is_one_line():
    with pytest.raises(SdloraError, match="unknown source of noise 'cdua'; did you mean cuda"):
        noise.source_name("cdua")


def draws(count: int, *args, **settings) -> list[torch.Tensor]:
    stream = noise.stream(*args, **settings)
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("source", noise.SOURCES)
def test_a_variation_mixes_the_first_draw_alone_along_a_great_circle(source: str):
    """The formula of AUTOMATIC1111's modules/rng.py, column by column in fp64."""
    one, other = (draws(2, seed, SHAPE, source) for seed in (5, 6))
    for strength in (0.1, 0.5, 1.0):
        first, second = draws(2, 5, SHAPE, source, variation=(6, strength))
        for c in range(4):
            for column in range(8):
                a, b = (x[0][c, :, column].double().numpy() for x in (one, other))
                angle = np.arccos(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
                expected = (np.sin((1 - strength) * angle) * a + np.sin(strength * angle) * b) / np.sin(angle)
                np.testing.assert_allclose(first[c, :, column], expected, rtol=0, atol=2e-5)
        assert torch.equal(second, one[1])
    torch.testing.assert_close(draws(1, 5, SHAPE, source, variation=(6, 1.0))[0], other[0], rtol=0, atol=1e-5)


def test_a_variation_by_the_own_seed_or_upon_a_single_row_of_latents_stays_a_number():
    assert torch.equal(draws(1, 5, SHAPE, variation=(5, 0.4))[0], draws(1, 5, SHAPE)[0])
    assert torch.isfinite(draws(1, 5, (4, 1, 8), variation=(6, 0.4))[0]).all()


@pytest.mark.parametrize("source", noise.SOURCES)
def test_with_ensd_all_draws_but_the_first_are_those_of_another_seed_from_its_beginning(source: str):
    own, far = draws(1, 5, SHAPE, source), draws(2, 5 + 31337, SHAPE, source)
    assert all(torch.equal(a, b) for a, b in zip(draws(3, 5, SHAPE, source, ensd=31337), [*own, *far], strict=True))
