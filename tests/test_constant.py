"""Laws of keys and values that are computed once per prompt: the same bits, fewer products, and nothing stale or left behind."""

import sys
from contextlib import nullcontext

import pytest
import torch
import torch._dynamo
from torch.utils.flop_counter import FlopCounterMode

from sdlora.apply import constant, cross_attention, fused, stacked
from sdlora.generation import Request, generate


@pytest.fixture
def inputs(components):
    context = torch.randn((2, 77, 128), generator=torch.Generator().manual_seed(1))
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(2)), torch.tensor([400, 700]), context


@torch.no_grad()
def output(components, inputs) -> torch.Tensor:
    return components.unet(*inputs).sample


def test_only_the_layers_that_see_the_prompt_are_chosen(components):
    names = {id(module): name for name, module in components.unet.named_modules()}
    chosen = [names[id(layer)] for layer in cross_attention(components.unet)]
    assert len(chosen) == 14 and all(".attn2.to_k" in name or ".attn2.to_v" in name for name in chosen)


def test_the_same_prompt_gives_the_same_bits_and_costs_no_products_the_second_time(components, inputs, random_adapter):
    adapter = random_adapter(components.modules)
    layers = cross_attention(components.unet)
    with stacked(components.modules, [(adapter, 1.0)]):
        plain = output(components, inputs)
        with constant(layers):
            counts = []
            for _ in range(2):
                with FlopCounterMode(display=False) as count:
                    assert torch.equal(output(components, inputs), plain)
                counts.append(count.get_total_flops())
    rows = 2 * 77
    own, first = (2 * rows * sum(n) for n in zip(*((w.numel(), 4 * w.shape[1]) for w in (layer.weight for layer in layers)), strict=True))
    assert counts[0] - counts[1] >= own + first  # the counter of PyTorch does not see the second, in-place product


def test_another_tensor_is_computed_anew_even_with_the_same_numbers_elsewhere(components, inputs):
    x, t, context = inputs
    other = (x, t, context.flip(0))
    expected = output(components, inputs), output(components, other)
    with constant(cross_attention(components.unet)):
        for _ in range(2):
            assert torch.equal(output(components, inputs), expected[0]) and torch.equal(output(components, other), expected[1])


@pytest.mark.parametrize("how", [stacked, fused])
def test_adapters_that_come_change_and_go_inside_the_block_are_seen_at_once(components, inputs, random_adapter, how):
    adapter, modules = random_adapter(components.modules), components.modules
    before = output(components, inputs)
    with how(modules, [(adapter, 1.0)]):
        full = output(components, inputs)
    with stacked(modules, [(adapter, -0.5)]):
        changed = output(components, inputs)
    with constant(cross_attention(components.unet)):
        assert torch.equal(output(components, inputs), before)
        with how(modules, [(adapter, 1.0)]) as stack:
            assert torch.equal(output(components, inputs), full)
            if stack:
                stack.set_strengths([-0.5])
                assert torch.equal(output(components, inputs), changed)
        assert torch.equal(output(components, inputs), before)


def test_nothing_is_left_after_the_block_and_blocks_nest(components, inputs):
    layers = cross_attention(components.unet)
    before = [set(vars(layer)) for layer in layers]
    with constant(layers):
        with constant(layers):
            output(components, inputs)
        assert all(set(vars(layer)) > names for layer, names in zip(layers, before, strict=True))  # the outer block goes on
    assert [set(vars(layer)) for layer in layers] == before


def test_pictures_are_the_same_bit_for_bit_with_and_without(components, random_adapter, monkeypatch):
    adapter, wanted = random_adapter(components.modules), [Request("a cat face", seed=seed, steps=3) for seed in (1, 2)]
    drawn = [picture.image.tobytes() for picture in generate(components, wanted, [(adapter, 1.0)], pack=False)]
    module = sys.modules["sdlora.generation.batch"]
    monkeypatch.setattr(module, "constant", lambda layers: nullcontext())
    assert [picture.image.tobytes() for picture in generate(components, wanted, [(adapter, 1.0)], pack=False)] == drawn


@pytest.mark.parametrize(("prompt", "times"), [("a cat face", 1), ("a [cat:dog:0.5] face", 2), ("a cat AND a dog", 1)])
def test_keys_are_computed_once_for_each_text_of_a_prompt_not_once_a_step(components, prompt, times):
    counted = []
    handle = cross_attention(components.unet)[0].register_forward_hook(lambda *_: counted.append(1))
    list(generate(components, [Request(prompt, steps=4)]))
    handle.remove()
    assert len(counted) == times


def test_a_compiled_layer_computes_each_time_and_gives_the_same(components, random_adapter):
    attention = components.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    x, one, two = torch.randn(2, 4, 144), torch.randn(2, 77, 128), torch.randn(2, 77, 128)
    torch._dynamo.reset()
    with stacked(components.modules, [(random_adapter(components.modules), 1.0)]), torch.no_grad():
        expected = {context: attention(x, encoder_hidden_states=context) for context in (one, two)}
        with constant(cross_attention(attention)):
            compiled = torch.compile(lambda *x, **words: attention(*x, **words), backend="eager", fullgraph=True)  # leaves no mark on it
            for context in (one, two, one):
                torch.testing.assert_close(compiled(x, encoder_hidden_states=context), expected[context], rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
