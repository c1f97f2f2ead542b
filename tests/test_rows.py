"""Laws of batches in which every row has its own adapters and strengths: each is what it would be alone, and pays for its own only."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdlora import models
from sdlora.adapter import Adapter
from sdlora.apply import stacked
from sdlora.errors import SdloraError
from sdlora.generation.denoiser import one_timestep

EVERYTHING = ("attention", "feed_forward", "projections", "convolutions", "shortcuts", "time_projections")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ETAS = {  # rows of η for three adapters; each pattern of zeros has another way to be computed
    "one each": [[1.0, 0, 0], [0, 0.7, 0], [0, 0, -1.2], [0.4, 0, 0]],
    "all, with other strengths": [[1.0, 0.5, 0.2], [0.3, 0.7, -0.1], [0.9, -1.0, 2.0], [0.1, 0.1, 0.1]],
    "some, none and all": [[0.0, 0.0, 0.0], [0.5, 0.0, 1.0], [0.3, 0.3, 0.3], [0.0, 2.0, 0.0]],
    "twice, as under guidance": [[1.0, 0, 0], [0, 1.0, 0.5], [1.0, 0, 0], [0, 1.0, 0.5]],
}


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn((4, 4, 8, 8), generator=generator), torch.tensor(500.0), torch.randn((4, 77, 128), generator=generator)


@pytest.fixture
def adapters(components, random_adapter):
    """Of unequal ranks, on unequal layers."""
    targets = (EVERYTHING, ("attention", "convolutions"), ("attention", "feed_forward", "time_projections"))
    ranks = (3, 5, 2)
    return [random_adapter(components.modules, t, rank=r, seed=r, size=0.08) for t, r in zip(targets, ranks, strict=True)]


@torch.inference_mode()
def output(components, inputs) -> torch.Tensor:
    with one_timestep(components.unet):  # as in generation: the layers of the timestep see one row for all
        return components.unet(*inputs).sample


def row(inputs, i: int):
    x, t, context = inputs
    return x[i : i + 1], t, context[i : i + 1]


@pytest.mark.parametrize("etas", ETAS.values(), ids=ETAS)
def test_every_row_of_a_batch_is_what_it_would_be_alone(components, adapters, inputs, etas):
    with stacked(components.modules, [(adapter, 1.0) for adapter in adapters]) as stack:
        stack.set_rows(etas)
        together = output(components, inputs)
    base = output(components, inputs)
    for i, own in enumerate(etas):
        with stacked(components.modules, list(zip(adapters, own, strict=True))):
            torch.testing.assert_close(together[i : i + 1], output(components, row(inputs, i)), **CLOSE)
        assert ((together[i] - base[i]).abs().max() > 0.01) == any(own)


@pytest.mark.parametrize("how", ["with gradients", "under autocast"])
def test_gradients_and_autocast_take_the_plain_way_to_the_same_numbers(components, adapters, inputs, how):
    etas = ETAS["some, none and all"]
    with stacked(components.modules, [(adapter, 1.0) for adapter in adapters]) as stack:
        stack.set_rows(etas)
        expected = output(components, inputs)
        if how == "with gradients":
            found = components.unet(inputs[0].clone().requires_grad_(), *inputs[1:]).sample
            assert found.requires_grad
        else:
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                found = components.unet(*inputs).sample.float()
    assert (found - expected).abs().max() < (1e-4 if how == "with gradients" else 0.1) * expected.abs().max()


def test_an_infinite_adapter_of_one_row_leaves_the_others_alone(components, adapters, random_adapter, inputs):
    wild = random_adapter(components.modules, EVERYTHING, size=float("inf"))
    with stacked(components.modules, [(wild, 1.0), (adapters[0], 1.0)]) as stack:
        stack.set_rows([[0, 1], [0, 1], [0, 0], [1, 0]])
        together = output(components, inputs)
    with stacked(components.modules, [(adapters[0], 1.0)]) as stack:
        stack.set_rows([[1], [1], [0], [0]])
        torch.testing.assert_close(together[:3], output(components, inputs)[:3], **CLOSE)
    assert not torch.isfinite(together[3]).any()


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_an_infinite_adapter_that_is_off_for_all_rows_is_nothing(components, adapters, random_adapter, inputs, eta):
    """As it is where pictures are called one by one: their prompts, and calls of the U-Net for prompts of several lengths."""
    wild = random_adapter(components.modules, EVERYTHING, size=float("inf"))
    with stacked(components.modules, [(adapters[0], 1.0)]) as stack:
        stack.set_strengths([eta])
        expected = output(components, inputs)
    with stacked(components.modules, [(adapters[0], 1.0), (wild, 0.0)]) as stack:
        for change in (lambda: stack.set_strengths([eta, 0]), lambda: stack.set_rows([[eta, 0]] * 4)):
            change()
            torch.testing.assert_close(output(components, inputs), expected, **CLOSE)
        stack.set_strengths([0, 1])
        assert not torch.isfinite(output(components, inputs)).any()


def test_rows_without_adapters_are_the_base_and_equal_rows_are_the_vector(components, adapters, inputs):
    base = output(components, inputs)
    with stacked(components.modules, [(adapter, 1.0) for adapter in adapters]) as stack:
        vector = output(components, inputs)
        stack.set_rows([[0, 0, 0]] * 2 + [[1, 0, 0]] * 2)
        mixed = output(components, inputs)
        stack.set_rows([[1.0, 1.0, 1.0]] * 4)
        assert torch.equal(output(components, inputs), vector)
        stack.set_rows([[0.0, 0.0, 0.0]] * 4)
        assert torch.equal(output(components, inputs), base)
    torch.testing.assert_close(mixed[:2], base[:2], rtol=1e-6, atol=1e-6)


def test_eight_rows_with_eight_adapters_cost_the_products_of_one(components, random_adapter):
    eight = [random_adapter(components.modules, rank=4, seed=seed) for seed in range(8)]
    inputs = torch.randn(8, 4, 8, 8), torch.tensor(500.0), torch.randn(8, 77, 128)
    counts = []
    for adapters, etas in ((eight[:1], [[1.0]] * 8), (eight, torch.eye(8).tolist()), (eight, [[1.0] * 8] * 8)):
        with stacked(components.modules, [(adapter, 1.0) for adapter in adapters]) as stack:
            stack.set_rows(etas)
            counts.append(products(components, inputs))
    one, mixed, all_of_all = (count - products(components, inputs) for count in counts)
    assert one == mixed and all_of_all > 4 * one


def products(components, inputs) -> int:
    """Multiplications and additions of all matrix products and convolutions, those summed in place too."""

    def product(_, a, b, **rest) -> int:
        return 2 * math.prod(a) * b[-1]

    own = {torch.ops.aten.addmm_: product, torch.ops.aten.baddbmm_: product}
    with FlopCounterMode(display=False, custom_mapping=own) as count:
        output(components, inputs)
    return count.get_total_flops()


def test_q_k_and_v_of_one_input_share_the_first_product(components, random_adapter):
    from torch.nn import functional as F

    attention = components.unet.mid_block.attentions[0].transformer_blocks[0]
    adapter = random_adapter(components.modules)
    name = "unet.mid_block.attentions.0.transformer_blocks.0"
    with stacked(components.modules, [(adapter, 1.0)]) as stack:
        firsts = {layer: stack.joined[f"{name}.{layer}"].first for layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v")}
        assert len(set(map(id, firsts.values()))) == 1
        assert stack.joined[f"{name}.attn2.to_k"].first is stack.joined[f"{name}.attn2.to_v"].first
        assert stack.joined[f"{name}.attn2.to_q"].first is not stack.joined[f"{name}.attn2.to_k"].first
        x, other = torch.randn(2, 4, 144), torch.randn(2, 4, 144)
        with torch.no_grad():
            for x_q, x_k, x_v in ((x, x, x), (x, other, x), (other, other, x)):  # whichever tensor comes, each layer sees its own
                found = [getattr(attention.attn1, f"to_{n}")(value) for n, value in zip("qkv", (x_q, x_k, x_v), strict=True)]
                for n, value, y in zip("qkv", (x_q, x_k, x_v), found, strict=True):
                    layer, update = getattr(attention.attn1, f"to_{n}"), adapter.layers[f"{name}.attn1.to_{n}"]
                    expected = F.linear(value.double(), layer.weight.double()) + value.double() @ update.delta(layer.weight).double().T
                    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        assert firsts["attn1.to_q"].seen is None  # no activation is held once the last of them has had it


def test_the_first_product_is_forgotten_after_the_last_layer_that_is_asked_whichever_that_is(components, random_adapter):
    attention = components.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    adapter = random_adapter(components.modules)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1."
    q, v = (Adapter({name + own: adapter.layers[name + own]}) for own in ("to_q", "to_v"))
    with torch.no_grad(), stacked(components.modules, [(q, 1.0), (v, 0.0)]):
        x = torch.randn(2, 4, 144)
        for _ in range(2):
            delta = q.layers[name + "to_q"].delta(attention.to_q.weight)
            torch.testing.assert_close(attention.to_q(x), x @ (attention.to_q.weight + delta).T, rtol=1e-4, atol=1e-5)
            attention.to_v(x)
            x.mul_(-3)  # the same tensor with other numbers


def test_strengths_that_change_between_q_and_k_are_seen(components, random_adapter):
    attention, adapter = components.unet.mid_block.attentions[0].transformer_blocks[0].attn1, random_adapter(components.modules)
    x = torch.randn(2, 4, 144)
    with torch.no_grad(), stacked(components.modules, [(adapter, 1.0)]) as stack:
        attention.to_q(x)
        stack.set_strengths([0.5])
        changed = attention.to_k(x)
    with torch.no_grad(), stacked(components.modules, [(adapter, 0.5)]):
        torch.testing.assert_close(attention.to_k(x), changed, **CLOSE)


@pytest.mark.parametrize("rank", [100, 200])
def test_where_ranks_sum_up_beyond_half_the_width_the_dense_update_is_used_and_is_the_same(components, random_adapter, predict, rank):
    adapter = random_adapter(components.modules, ("attention", "convolutions"), rank=rank, alpha=rank, size=0.03)
    before = predict(components)
    with stacked(components.modules, [(adapter, 1.0)]) as stack:
        dense = {name for name, joined in stack.joined.items() if joined.dense}
        found = predict(components)
        assert all((stack.joined[name].delta is not None) == (name in dense) for name in adapter.layers)
        stack.set_strengths([-0.5])
        assert all(joined.delta is None for joined in stack.joined.values())  # made anew, from the vector, when it is needed
        changed = predict(components)
    assert bool(dense) and (dense == set(adapter.layers)) == (rank == 200)
    for eta, result in ((1.0, found), (-0.5, changed)):
        with stacked(components.modules, [(adapter, eta)]) as stack:
            for joined in stack.joined.values():
                joined.dense = False
            torch.testing.assert_close(result, predict(components), **CLOSE)
    assert (found - before).abs().max() > 0.01


def test_a_batch_of_another_size_than_its_strengths_is_refused(components, random_adapter, inputs):
    with stacked(components.modules, [(random_adapter(components.modules), 1.0)]) as stack:
        stack.set_rows([[1.0], [0.5], [0.2]])
        with pytest.raises(SdloraError, match="called with 4 rows, and strengths are set for 3"):
            output(components, inputs)
        with pytest.raises(SdloraError, match="2 strengths for 1 stacked adapters"):
            stack.set_rows([[1.0], [0.5, 0.2]])


def test_changing_the_strengths_of_rows_gathers_nothing_anew(components, adapters, inputs):
    with stacked(components.modules, [(adapter, 1.0) for adapter in adapters]) as stack:
        kept = []
        for factor in (1.0, 0.3):
            stack.set_rows([[factor * eta for eta in own] for own in ETAS["one each"]])
            output(components, inputs)
            kept.append([first.gathered.columns for first in stack.firsts if first.gathered is not None])
    assert kept[0] and all(one is two for one, two in zip(*kept, strict=True))


def test_an_adapter_may_be_missing_from_a_layer_that_others_have(components, adapters, inputs):
    name = next(name for name in adapters[1].layers if name.endswith("attn1.to_k"))
    less = Adapter({key: update for key, update in adapters[1].layers.items() if key != name})
    with stacked(components.modules, [(adapters[0], 1.0), (less, 1.0)]) as stack:
        stack.set_rows([[1.0, 0], [0, 1.0], [0, 1.0], [0, 0]])
        together = output(components, inputs)
    with stacked(components.modules, [(less, 1.0)]):
        torch.testing.assert_close(together[1:2], output(components, row(inputs, 1)), **CLOSE)


def test_pefts_mixed_batch_is_the_same(components, tiny_base, random_adapter, inputs):
    """PEFT's own way for a batch of several adapters: one after the other, each with the rows that name it."""
    peft = pytest.importorskip("peft")
    adapters = {name: random_adapter(components.modules, rank=4, alpha=3.0, seed=seed) for seed, name in enumerate(("a", "b"))}
    wrapped, state = models.load(tiny_base).unet, {}
    layers = [name.removeprefix("unet.") for name in adapters["a"].layers]
    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=layers)
    wrapped = peft.get_peft_model(wrapped, config, adapter_name="a")
    wrapped.add_adapter("b", config)
    for name, adapter in adapters.items():
        for layer, update in adapter.layers.items():
            key = f"base_model.model.{layer.removeprefix('unet.')}"
            state |= {f"{key}.lora_A.{name}.weight": update.a, f"{key}.lora_B.{name}.weight": update.b}
    assert not wrapped.load_state_dict(state, strict=False).unexpected_keys
    with torch.inference_mode():
        theirs = wrapped.eval()(*inputs, adapter_names=["a", "__base__", "b", "a"]).sample
    with stacked(components.modules, [(adapter, 1.0) for adapter in adapters.values()]) as stack:
        stack.set_rows([[1, 0], [0, 0], [0, 1], [1, 0]])
        torch.testing.assert_close(output(components, inputs), theirs, **CLOSE)


def test_in_half_precision_a_row_is_what_it_is_alone_to_half_precision(tiny_base, random_adapter, inputs):
    half = models.load(tiny_base, dtype=torch.bfloat16)
    adapters = [random_adapter(half.modules, EVERYTHING, rank=r, seed=r, size=0.08) for r in (3, 5, 2)]
    x, t, context = (value.bfloat16() for value in inputs)
    etas = ETAS["one each"]
    with stacked(half.modules, [(adapter, 1.0) for adapter in adapters]) as stack:
        stack.set_rows(etas)
        together = output(half, (x, t, context))
    for i, own in enumerate(etas):
        with stacked(half.modules, list(zip(adapters, own, strict=True))):
            alone = output(half, row((x, t, context), i))
        assert (together[i : i + 1] - alone).abs().max() <= 0.03 * alone.abs().max()
