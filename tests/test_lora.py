"""Laws of plain LoRA on one layer, and of counting its parameters."""

import pytest
import torch
from torch import nn

from sdlora.adapter import Adapter, counts
from sdlora.kinds import lora

LAYERS = {
    "linear": (nn.Linear(6, 10), (3, 7, 6)),
    "convolution": (nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=1), (2, 4, 9, 9)),
    "dilated convolution": (nn.Conv2d(4, 8, 3, padding=2, dilation=2, padding_mode="reflect"), (2, 4, 9, 9)),
    "1 × 1 convolution": (nn.Conv2d(4, 8, 1), (2, 4, 5, 5)),
}


def random_lora(layer: nn.Module, rank: int, alpha: float, seed: int = 0) -> lora.Lora:
    generator = torch.Generator().manual_seed(seed)
    start = lora.fresh(layer, rank, alpha, generator)
    return lora.Lora(start.a, torch.randn(start.b.shape, generator=generator), alpha)


@pytest.mark.parametrize("name", LAYERS)
def test_residual_is_what_delta_adds_to_the_output(name: str):
    layer, size = LAYERS[name]
    layer, x = layer.double(), torch.randn(size, dtype=torch.float64)
    update = random_lora(layer, 3, 5.0)
    update = lora.Lora(update.a.double(), update.b.double(), 5.0)
    before = layer(x)
    changed = type(layer)(**arguments(layer)).double()
    changed.load_state_dict({"weight": layer.weight + update.delta(layer.weight), "bias": layer.bias})
    torch.testing.assert_close(before + update.residual(x, layer), changed(x))


def arguments(layer: nn.Module) -> dict[str, object]:
    names = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}


@pytest.mark.parametrize("name", LAYERS)
def test_a_fresh_update_is_nothing(name: str):
    layer, size = LAYERS[name]
    update = lora.fresh(layer.float(), 4, 4.0, torch.Generator().manual_seed(1))
    assert not update.delta(layer.weight).any() and update.a.any() and update.shape == tuple(layer.weight.shape)
    assert not update.residual(torch.randn(size), layer).any()


def test_a_fresh_a_is_gaussian_with_deviation_one_over_the_rank():
    a = lora.fresh(nn.Linear(20_000, 2), 5, 1.0, torch.Generator().manual_seed(0)).a
    assert a.std().item() == pytest.approx(1 / 5, rel=0.01) and a.mean().item() == pytest.approx(0, abs=0.003)


def test_alpha_over_rank_scales_delta():
    layer = nn.Linear(6, 10)
    one, two = (random_lora(layer, 4, alpha) for alpha in (4.0, 1.0))
    torch.testing.assert_close(one.delta(layer.weight), one.b @ one.a)
    torch.testing.assert_close(two.delta(layer.weight), 0.25 * one.delta(layer.weight))


def test_delta_of_half_precision_factors_is_summed_in_single_precision():
    layer = nn.Linear(512, 16)
    full = random_lora(layer, 64, 64.0)
    half = lora.Lora(full.a.half(), full.b.half(), full.alpha)
    assert half.delta(layer.weight).dtype == torch.float32
    exact = lora.Lora(half.a.double(), half.b.double(), full.alpha).delta(layer.weight)
    torch.testing.assert_close(half.delta(layer.weight).double(), exact, rtol=1e-5, atol=1e-5)


def test_768_to_3072_at_rank_32_takes_122880_of_2359296_parameters():
    layer = nn.Linear(768, 3072)
    adapter = Adapter({"unet.layer": lora.fresh(layer, 32, 16.0)})
    (count,) = counts(adapter, {"unet": nn.ModuleDict({"layer": layer})})
    assert (count.parameters, count.full, count.shape, count.rank) == (122_880, 2_359_296, (3072, 768), 32)
    assert count.ratio == pytest.approx(0.0520833, rel=1e-5) and adapter.parameters == 122_880
    assert counts(adapter) == [count]  # without the model as well


def test_a_convolution_is_counted_with_its_kernel():
    layer = nn.Conv2d(64, 128, 3)
    (count,) = counts(Adapter({"unet.conv": lora.fresh(layer, 8, 8.0)}))
    assert (count.parameters, count.full) == (8 * 64 * 9 + 128 * 8, 128 * 64 * 9)
