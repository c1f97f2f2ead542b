"""Units of the U-Net computed as one: the numbers and gradients of the parts they stand for, in fp64 and on every family."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sdlora import apply, conditioning
from sdlora.apply.inject import Trained
from sdlora.conditioning import Conditioning
from sdlora.training import units
from sdlora.training.units import heads, lowrank, residual, transformer

ATTENTION, ALL = ("attention",), ("attention", "feed_forward", "projections", "convolutions", "shortcuts", "time_projections")


def trained(components, targets, alpha=8.0) -> list[nn.Parameter]:
    """Random A and B, both doubles, on the components' U-Net."""
    modules = {"unet": components.unet}
    parameters = apply.inject(modules, apply.select(modules, targets), 4, alpha, torch.Generator().manual_seed(1))
    for carrier in apply.carriers(modules).values():
        carrier.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.05)
    return parameters


@pytest.fixture
def wide(loaded):
    """A function kind -> its components in fp64, afterwards as they were."""
    used = []

    def of(kind):
        components = loaded(kind)
        components.unet.double()
        used.append(components)
        return components

    yield of
    for components in used:
        apply.eject({"unet": components.unet})
        components.unet.float()


def outcome(components, parameters, masked: bool = False) -> list[Tensor]:
    """A loss, and its gradients by the parameters and by the prompt."""
    generator = torch.Generator().manual_seed(3)
    config = components.unet.config
    x = torch.randn((2, 4, 8, 8), generator=generator, dtype=torch.float64)
    context = torch.randn((2, 77, config.cross_attention_dim), generator=generator, dtype=torch.float64).requires_grad_()
    pooled = None
    if components.family == "sdxl":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        pooled = torch.randn((2, width), generator=generator, dtype=torch.float64)
    mask = torch.arange(77)[None] < torch.tensor([[40], [77]]) if masked else None
    ids = torch.full((2, 6), 64.0, dtype=torch.float64)
    said = conditioning.predict(components.unet, x, torch.tensor([20, 700]), Conditioning(context, pooled, mask), ids)
    loss = said.square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, [*parameters, context])]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """Relative to each one's size; a gradient that is none but for rounding (of a number that a norm takes out) has that of the largest."""
    floor = 1e-6 * max(float(b.norm()) for b in other)
    return max(float((a - b).norm()) / max(float(b.norm()), floor) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("sd1", ATTENTION), ("sd1", (*ATTENTION, "feed_forward")), ("sd1", ALL), ("sd2", ATTENTION), ("sdxl", ALL)],
    ids=["sd1-attention", "sd1-transformers", "sd1-everything", "sd2-attention", "sdxl-everything"],
)
def test_joined_units_have_the_loss_and_the_gradients_of_their_parts(wide, kind, targets):
    components = wide(kind)
    parameters = trained(components, targets)
    parts = outcome(components, parameters)
    with units.joined(components.unet):
        assert apart(outcome(components, parameters), parts) < 1e-9


def test_units_really_stand_in_for_their_parts_and_are_gone_afterwards(wide, monkeypatch):
    components = wide("sd1")
    parameters = trained(components, ATTENTION)
    calls = []
    for function in (residual.Residual, transformer.Attend, transformer.Feed):
        monkeypatch.setattr(
            function, "apply", lambda *given, of=function.apply, name=function.__name__: (calls.append(name), of(*given))[1]
        )
    before = {name: dict(vars(module)) for name, module in components.unet.named_modules()}
    with units.joined(components.unet):
        outcome(components, parameters)
        used = set(calls)
        calls.clear()
        with torch.no_grad():
            components.unet(
                torch.zeros((1, 4, 8, 8)).double(), 3, torch.zeros((1, 77, components.unet.config.cross_attention_dim)).double()
            )
        assert not calls  # nothing is joined where no gradient is asked for
    assert used == {"Residual", "Attend", "Feed"}
    assert {name: vars(module).keys() for name, module in components.unet.named_modules()} == {n: d.keys() for n, d in before.items()}


def test_a_longer_prompt_s_mask_and_dropout_are_left_to_the_parts(wide):
    components = wide("sd1")
    parameters = trained(components, ATTENTION)
    carriers = apply.carriers({"unet": components.unet})

    def source(layer: str, purpose: str, where: torch.device) -> torch.Generator:
        return torch.Generator(where).manual_seed(len(layer))

    for masked, dropping in ((True, False), (False, True)):
        with apply.dropping(carriers, 0.3, 0.0, 0.0, source) if dropping else nullcontext():
            parts = outcome(components, parameters, masked)
            with units.joined(components.unet):
                assert apart(outcome(components, parameters, masked), parts) < 1e-10


def test_units_keep_less_for_the_gradient_than_their_parts(wide):
    components = wide("sd1")
    parameters = trained(components, ATTENTION)

    def kept() -> int:
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outcome(components, parameters)
        return sum(seen.values())

    parts = kept()
    with units.joined(components.unet):
        assert kept() < 0.8 * parts


def test_checkpoints_of_activations_leave_the_units_joined_and_change_nothing(wide, monkeypatch):
    components = wide("sd1")
    parameters = trained(components, ATTENTION)
    calls = []
    monkeypatch.setattr(transformer.Attend, "apply", lambda *given, of=transformer.Attend.apply: (calls.append(1), of(*given))[1])
    with units.joined(components.unet):
        plain = outcome(components, parameters)
        once = len(calls)
        components.unet.enable_gradient_checkpointing()
        try:
            again = outcome(components, parameters)
        finally:
            components.unet.disable_gradient_checkpointing()
            for part in components.unet.modules():  # diffusers leaves it
                vars(part).pop("_gradient_checkpointing_func", None)
    assert len(calls) == 3 * once > 0  # and twice where a checkpoint computes it anew
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


@pytest.mark.parametrize("few", [1 << 14, 0], ids=["kept", "piecewise"])
def test_attention_and_its_gradients_are_those_of_the_formula(monkeypatch, few):
    monkeypatch.setattr(heads, "FEW", few)
    generator = torch.Generator().manual_seed(4)
    q, k, v, g = (torch.randn((2 * length, 24), generator=generator, dtype=torch.float64).requires_grad_() for length in (9, 7, 7, 9))

    def formula() -> Tensor:
        a, b, c = (t.view(2, -1, 3, 8).transpose(1, 2) for t in (q, k, v))
        return (torch.softmax(a @ b.transpose(-1, -2) / 8**0.5, -1) @ c).transpose(1, 2).reshape(18, 24)

    out, kept = heads.forward(q.detach(), k.detach(), v.detach(), 2, 3)
    assert torch.allclose(out, formula(), rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(heads.backward(g.detach(), kept, 2, 3), torch.autograd.grad(formula(), (q, k, v), g), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_half_precision_and_other_hooks_are_left_to_the_parts(loaded):
    layer = nn.Linear(4, 4)
    assert lowrank.usable([layer])
    handle = layer.register_forward_hook(lambda module, given, out: out)
    assert not lowrank.usable([layer])
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert not lowrank.usable([layer])
    unet = deepcopy(loaded("sd1").unet).bfloat16()
    with units.joined(unet):
        assert not any("forward" in vars(module) for module in unet.modules())
    assert not any(isinstance(module, Trained) for module in unet.modules())


def test_pictures_during_a_training_see_the_parts_themselves(loaded):
    unet = loaded("sd1").unet
    before = [dict(vars(module)) for module in unet.modules()]
    with units.joined(unet):
        swapped = [dict(vars(module)) for module in unet.modules()]
        assert swapped != before
        with units.apart(unet):
            assert [dict(vars(module)) for module in unet.modules()] == before
        assert [dict(vars(module)) for module in unet.modules()] == swapped
