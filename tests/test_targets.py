"""Laws of the targets: kohya's counts on the true models, every part with its own rank and α."""

import pytest
import torch
from skeletons import true_size
from torch import nn

from sdlora.apply import TARGETS, Part, inject, plan, select
from sdlora.errors import SdloraError
from sdlora.layers import adaptable, named_layers

TRANSFORMERS = ("attention", "feed_forward", "projections")  # kohya's default: all in Transformer2DModel
CONVOLUTIONS = ("convolutions", "shortcuts", "time_projections")  # what its conv_dim adds: all in ResnetBlock2D and the samplers
FIRST, SECOND = ("text_attention", "text_mlp"), ("text_attention_2", "text_mlp_2")


@pytest.mark.parametrize(
    ("family", "targets", "number"),
    [
        ("sd1", ("attention",), 128),
        ("sd1", TRANSFORMERS, 192),
        ("sd1", (*TRANSFORMERS, *CONVOLUTIONS), 278),
        ("sd1", FIRST, 72),
        ("sd2", TRANSFORMERS, 192),
        ("sd2", FIRST, 23 * 6),
        ("sdxl", ("attention",), 560),
        ("sdxl", TRANSFORMERS, 722),
        ("sdxl", (*TRANSFORMERS, *CONVOLUTIONS), 788),
        ("sdxl", FIRST, 72),
        ("sdxl", SECOND, 192),
    ],
)
def test_the_targets_come_to_kohyas_numbers_of_modules(family, targets, number):
    assert len(select(true_size(family), targets)) == number


@pytest.mark.parametrize(("family", "parameters"), [("sd1", 859_520_964), ("sdxl", 2_567_463_684)])
def test_the_models_that_are_counted_on_are_the_true_ones(family, parameters):
    assert sum(p.numel() for p in true_size(family)["unet"].parameters()) == parameters


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_targets_are_what_kohyas_classes_hold(family):
    """By kohya's own rule: every Linear and Conv2d below these classes of diffusers (networks/lora.py, create_modules)."""
    unet = true_size(family)["unet"]
    for classes, targets in (
        (("Transformer2DModel",), TRANSFORMERS),
        (("ResnetBlock2D", "Downsample2D", "Upsample2D"), CONVOLUTIONS),
    ):
        theirs = {
            f"unet.{name}.{child}"
            for name, module in unet.named_modules()
            if type(module).__name__ in classes
            for child, layer in module.named_modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        }
        assert set(select({"unet": unet}, targets)) == theirs


def test_no_layer_belongs_to_two_targets():
    modules = true_size("sdxl")
    assert sum(len(select(modules, [target])) for target in TARGETS) == len(select(modules, TARGETS)) == 788 + 72 + 192


def test_convolutions_are_3x3_and_shortcuts_1x1():
    layers = named_layers(true_size("sd1"))
    assert {tuple(layers[name].kernel_size) for name in select(true_size("sd1"), ["convolutions"])} == {(3, 3)}
    assert {tuple(layers[name].kernel_size) for name in select(true_size("sd1"), ["shortcuts"])} == {(1, 1)}


def test_every_part_has_its_own_rank_and_alpha_and_can_be_off(components):
    parts = {"attention": Part(8), "convolutions": Part(4, 1.0), "text_mlp": Part(2, 2.0, on=False), "projections": Part(3, 6)}
    ranks, alphas = plan(components.modules, parts)
    assert list(ranks) == list(alphas) == select(components.modules, ["attention", "convolutions", "projections"])
    for target, (rank, alpha) in {"attention": (8, 8.0), "convolutions": (4, 1.0), "projections": (3, 6.0)}.items():
        own = select(components.modules, [target])
        assert {ranks[name] for name in own} == {rank} and {alphas[name] for name in own} == {alpha}


def test_inject_takes_the_plan(components):
    from sdlora.apply import eject, extract

    ranks, alphas = plan(components.modules, {"projections": Part(3, 6), "text_mlp": Part(1)})
    inject(components.modules, list(ranks), ranks, alphas)
    try:
        adapter = extract(components.modules)
    finally:
        eject(components.modules)
    assert {name: update.rank for name, update in adapter.layers.items()} == ranks
    assert {name: update.alpha for name, update in adapter.layers.items()} == alphas


def test_unknown_targets_and_targets_without_layers_are_refused(components):
    with pytest.raises(SdloraError, match="unknown target 'atention'; did you mean attention?"):
        select(components.modules, ["atention"])
    with pytest.raises(SdloraError, match="the target text_mlp_2 has no layer in unet, text_encoder"):
        plan(components.modules, {"attention": Part(4), "text_mlp_2": Part(4)})


def test_the_layers_of_a_model_are_those_of_its_named_modules_in_their_order(components):
    shared = nn.Linear(2, 2)
    odd = nn.ModuleDict(
        {"a": nn.Sequential(shared, nn.Conv2d(4, 4, 1, groups=2)), "b": nn.Sequential(nn.ReLU(), shared, nn.Conv2d(2, 2, 1))}
    )
    odd["b"].register_module("gone", None)
    odd["c"] = odd["a"]
    for module in (*components.modules.values(), odd, shared, nn.Conv2d(4, 4, 1, groups=2)):
        expected = [
            (name, layer)
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        ]
        found = list(adaptable(module).items())
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert all(ours is theirs for (_, ours), (_, theirs) in zip(found, expected, strict=True))
