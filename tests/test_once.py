"""Laws of rows that repeat themselves before the prompt is looked at: computed once, the same bits, and never where rows differ."""

from collections.abc import Iterator

import pytest
import torch

from sdlora import apply
from sdlora.adapter import Adapter
from sdlora.benchmark.work import Counter
from sdlora.conditioning import Conditioning, predict
from sdlora.generation import Request, generate
from sdlora.generation.denoiser import one_timestep
from sdlora.kinds.lora import Lora
from sdlora.lean import install, lean

ORDERS = {"guidance": [0, 0], "two pictures": [0, 1, 0, 1], "AND": [0, 0, 0, 0], "of different lengths": [0, 1, 1, 0], "plain": [0, 1, 2]}
REPEATED = {"guidance": 2, "two pictures": 2, "AND": 4}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def said(unet: torch.nn.Module, order: list[int], side: int = 16) -> torch.Tensor:
    """Of rows in this order, each with a prompt of its own."""
    generator = torch.Generator().manual_seed(5)
    x, context = torch.randn((3, 4, side, side), generator=generator), torch.randn((len(order), 77, 128), generator=generator)
    with one_timestep(unet):
        return predict(unet, x[order], torch.tensor(400.0), Conditioning(context, None), None)


def counted(unet: torch.nn.Module, order: list[int]) -> tuple[torch.Tensor, int]:
    with lean(unet), Counter() as count:
        return said(unet, order), count.flops


@pytest.fixture
def each_row(monkeypatch: pytest.MonkeyPatch):
    """A function that does what `counted` does with every row computed."""

    def every_row(unet: torch.nn.Module, order: list[int]) -> tuple[torch.Tensor, int]:
        with monkeypatch.context() as patch:
            patch.setattr(install, "once", lambda *_: {})
            return counted(unet, order)

    return every_row


@pytest.mark.parametrize("name", ORDERS)
def test_rows_are_the_same_bits_and_fewer_operations_where_they_repeat_themselves(components, each_row, name):
    (plain, all_of_them), (found, fewer) = each_row(components.unet, ORDERS[name]), counted(components.unet, ORDERS[name])
    assert torch.equal(found, plain)
    assert (fewer < 0.97 * all_of_them) == (name in REPEATED)
    assert name in REPEATED or fewer == all_of_them


@pytest.mark.parametrize("targets", [("attention",), ("attention", "convolutions", "shortcuts", "feed_forward")])
@pytest.mark.parametrize("etas", [[[0.7]], [[0.7], [0.0]], [[0.7], [-0.5]]])
def test_adapters_act_on_each_row_as_if_all_were_computed(components, random_adapter, each_row, targets, etas):
    adapter = random_adapter(components.modules, targets)
    with apply.stacked(components.modules, [(adapter, 1.0)]) as stack:
        stack.set_rows(etas * (2 // len(etas)))
        plain, _ = each_row(components.unet, [0, 0])
        found, _ = counted(components.unet, [0, 0])
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    assert (found - counted(components.unet, [0, 0])[0]).abs().max() > 0.01


def test_an_adapter_on_the_very_first_layer_acts_on_all_rows(components, each_row):
    generator, layer = torch.Generator().manual_seed(2), components.unet.conv_in
    lora = Lora(torch.randn((30, 4, 3, 3), generator=generator), torch.randn((layer.out_channels, 30, 1, 1), generator=generator), 30.0)
    with apply.stacked(components.modules, [(Adapter({"unet.conv_in": lora}), 0.3)]):
        torch.testing.assert_close(counted(components.unet, [0, 0])[0], each_row(components.unet, [0, 0])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0", "down_blocks.1.attentions.0"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_who_looks_at_a_layer_sees_all_rows_and_may_change_one(components, each_row, where, kind):
    seen = []

    def look(module, inputs, output=None):
        seen.append(len(inputs[0]))
        if kind == "register_forward_pre_hook":
            return (inputs[0] * torch.tensor([1.0, 1.5]).view(2, 1, 1, 1), *inputs[1:])
        return None

    with getattr(components.unet.get_submodule(where), kind)(look):
        plain, _ = each_row(components.unet, [0, 0])
        found, _ = counted(components.unet, [0, 0])
    assert set(seen) == {2} and torch.equal(found, plain)


def test_a_processor_of_somebodys_own_sees_all_rows_and_may_mix_them(components, each_row):
    attention, seen = components.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1, []

    class Mixing(type(attention.processor)):
        def __call__(self, layers, x, *more, **words):
            seen.append(len(x))
            return super().__call__(layers, x, *more, **words) * torch.tensor([1.0, 1.5]).view(2, 1, 1)

    before = attention.processor
    attention.set_processor(Mixing())
    try:
        assert torch.equal(counted(components.unet, [0, 0])[0], each_row(components.unet, [0, 0])[0])
    finally:
        attention.set_processor(before)
    assert set(seen) == {2}


@pytest.mark.parametrize("where", ["down_blocks.0.downsamplers.0", "down_blocks.0.resnets.0.conv1"])
def test_a_forward_of_somebodys_own_sees_all_rows_and_stays(components, each_row, where):
    layer, seen = components.unet.get_submodule(where), []

    def own(x):
        seen.append(len(x))
        return type(layer).forward(layer, x) * torch.tensor([1.0, 1.5]).view(2, 1, 1, 1)

    layer.forward = own
    try:
        assert torch.equal(counted(components.unet, [0, 0])[0], each_row(components.unet, [0, 0])[0])
        assert set(seen) == {2} and vars(layer)["forward"] is own
    finally:
        vars(layer).pop("forward", None)


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_written_into_the_rows_on_the_way_is_seen(components, each_row, inference):
    def write(module, inputs, outputs):
        outputs[0][1:].mul_(1.5)

    with torch.inference_mode() if inference else torch.no_grad(), components.unet.down_blocks[0].register_forward_hook(write):
        found, plain = counted(components.unet, [0, 0])[0], each_row(components.unet, [0, 0])[0]
    assert torch.equal(found, plain)


def test_rows_with_timesteps_of_their_own_are_all_computed(components):
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)).expand(2, -1, -1, -1)
    context = torch.zeros((2, 77, 128))
    with lean(components.unet):
        found = predict(components.unet, x, torch.tensor([100.0, 900.0]), Conditioning(context, None), None)
        alone = predict(components.unet, x[:1], torch.tensor([900.0]), Conditioning(context[:1], None), None)
    torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_nothing_is_remembered_from_one_call_to_the_next(components):
    with lean(components.unet):
        first = said(components.unet, [0, 0])
        states = {own.state for module in components.unet.modules() if hasattr(own := vars(module).get("forward"), "state")}
        assert len(states) == 1 and all(state.whole is None and state.part is None for state in states)
        said(components.unet, [0, 1, 2])
        assert torch.equal(said(components.unet, [0, 0]), first)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_pictures_of_all_families_are_the_same_bits(loaded, monkeypatch, family):
    base, request = loaded(family), Request("a cat", "a dog", seed=1, steps=2, width=64, height=64)
    found = next(generate(base, [request], pack="always")).image
    monkeypatch.setattr(install, "once", lambda *_: {})
    assert next(generate(base, [request], pack="always")).image.tobytes() == found.tobytes()
