"""Laws of adapters on a model: trained, stacked and fused are one function, and nothing is left when they come off."""

import random
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
import torch._dynamo

from sdlora import models
from sdlora.adapter import Adapter
from sdlora.apply import applied, attach, eject, extract, fused, inject, select, stacked
from sdlora.errors import SdloraError
from sdlora.kinds.lora import Lora
from sdlora.layers import named_layers

EVERYTHING = ("attention", "feed_forward", "projections", "convolutions", "text_attention", "text_mlp")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@contextmanager
def trained(modules, weighted):
    ((adapter, _),) = weighted
    attach(modules, adapter)
    try:
        yield
    finally:
        eject(modules)


def bits(components) -> dict[str, torch.Tensor]:
    """Every tensor of the model as integers, so that −0 and NaN count too."""
    kinds = {4: torch.int32, 2: torch.int16, 8: torch.int64}
    state = {f"{c}.{k}": v for c, m in components.modules.items() for k, v in m.state_dict().items()}
    return {key: value.detach().clone().view(kinds[value.element_size()]) for key, value in state.items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_fresh_adapter_changes_nothing(components, predict):
    before = predict(components)
    inject(components.modules, select(components.modules, EVERYTHING), 4, 4.0, torch.Generator().manual_seed(0))
    try:
        assert torch.equal(predict(components), before)
    finally:
        eject(components.modules)


def test_trained_stacked_and_fused_are_the_same_function_on_every_kind_of_layer(components, predict, random_adapter):
    adapter = random_adapter(components.modules, EVERYTHING, rank=lambda i: 1 + i % 5, alpha=lambda i: 0.5 + i % 3, size=0.05)
    before, outputs = predict(components), {}
    for name, way in {"trained": trained, "stacked": stacked, "fused": fused}.items():
        with way(components.modules, [(adapter, 1.0)]):
            outputs[name] = predict(components)
    assert (outputs["trained"] - before).abs().max() > 0.05 * before.abs().max()
    torch.testing.assert_close(outputs["stacked"], outputs["trained"], **CLOSE)
    torch.testing.assert_close(outputs["fused"], outputs["trained"], **CLOSE)


@pytest.mark.parametrize("etas", [(0.7, -1.3), (2.5, 0.0), (0.0, 1.0)])
def test_two_adapters_with_their_own_strengths_stack_as_they_fuse(components, predict, random_adapter, etas):
    one = random_adapter(components.modules, ("attention",), rank=3, alpha=1.0, seed=1)
    two = random_adapter(components.modules, ("feed_forward", "attention", "text_mlp"), rank=5, alpha=5.0, seed=2, size=0.05)
    weighted = list(zip((one, two), etas, strict=True))
    with stacked(components.modules, weighted):
        on_the_fly = predict(components)
    with fused(components.modules, weighted):
        torch.testing.assert_close(predict(components), on_the_fly, **CLOSE)


def test_peft_computes_the_same(components, tiny_base, predict, random_adapter):
    peft = pytest.importorskip("peft")
    adapter = random_adapter(components.modules, ("attention", "feed_forward", "projections", "convolutions"), rank=4, alpha=3.0, size=0.05)
    with stacked(components.modules, [(adapter, 1.0)]):
        ours = predict(components)
    unet = models.load(tiny_base).unet
    names = [name.removeprefix("unet.") for name in adapter.layers]
    wrapped = peft.get_peft_model(unet, peft.LoraConfig(r=4, lora_alpha=3, target_modules=names))
    state = {}
    for name, update in adapter.layers.items():
        key = f"base_model.model.{name.removeprefix('unet.')}"
        state |= {f"{key}.lora_A.default.weight": update.a, f"{key}.lora_B.default.weight": update.b}
    unexpected = wrapped.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected and len(state) == 2 * len(names)
    torch.testing.assert_close(ours, predict(replace(components, unet=unet)), **CLOSE)


def test_strength_zero_is_the_base_bit_for_bit(components, predict, random_adapter):
    before, adapter = predict(components), random_adapter(components.modules, EVERYTHING)
    for how in ("stacked", "fused"):
        with applied(components.modules, [(adapter, 0.0), (adapter, 0.0)], how):
            assert torch.equal(predict(components), before)


def test_strength_zero_is_the_base_even_where_the_adapter_is_infinite_and_weights_are_signed_zeros(tiny_base, predict, random_adapter):
    components = models.load(tiny_base)
    for layer in named_layers(components.modules).values():
        layer.weight.data.view(-1)[:7] = -0.0
    wild = random_adapter(components.modules, size=float("inf"))
    before, weights = predict(components), bits(components)
    with stacked(components.modules, [(wild, 0.0)]), fused(components.modules, [(wild, 0.0)]):
        assert same(bits(components), weights) and torch.equal(predict(components), before)


def test_changing_strengths_rebuilds_nothing_and_means_the_same_as_stacking_anew(components, predict, random_adapter):
    one, two = (random_adapter(components.modules, seed=seed) for seed in (1, 2))
    before = predict(components)
    with stacked(components.modules, [(one, 1.0), (two, 1.0)]) as stack:
        tensors = [t.data_ptr() for j in stack.joined.values() for t in (j.a, j.b, j.strengths)]
        stack.set_strengths([0.25, -2.0])
        changed = predict(components)
        assert tensors == [t.data_ptr() for j in stack.joined.values() for t in (j.a, j.b, j.strengths)]
        stack.set_strengths([0.0, 0.0])
        assert torch.equal(predict(components), before)
    with stacked(components.modules, [(one, 0.25), (two, -2.0)]):
        assert torch.equal(predict(components), changed)


@pytest.mark.slow
def test_changing_strengths_does_not_recompile_a_compiled_model(components, random_adapter):
    adapters = [random_adapter(components.modules, seed=seed) for seed in (1, 2)]
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([600]), torch.randn(1, 77, 128)
    torch._dynamo.reset()
    with stacked(components.modules, [(adapter, 1.0) for adapter in adapters]) as stack, torch.no_grad():
        compiled = torch.compile(components.unet, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs).sample, components.unet(*inputs).sample, **CLOSE)
        with torch._dynamo.config.patch(error_on_recompile=True):
            stack.set_strengths([0.1, -2.0])
            changed = compiled(*inputs).sample
        torch.testing.assert_close(changed, components.unet(*inputs).sample, **CLOSE)
    torch._dynamo.reset()
    vars(components.unet).pop("_is_torch_compile", None)  # torch.compile marks the model itself


def test_each_image_of_a_batch_can_have_its_own_strengths(components, random_adapter):
    """What a (batch, Σr) matrix in place of the vector gives: row i is the model with the strengths i. More of it in test_rows.py."""
    adapter = random_adapter(components.modules, ("attention", "convolutions"))
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 600]), torch.randn(2, 77, 128)
    with stacked(components.modules, [(adapter, 1.0)]) as stack, torch.no_grad():
        stack.set_rows([[1.0], [0.5]])
        both = components.unet(x, t, context).sample
    for i, eta in enumerate((1.0, 0.5)):
        with stacked(components.modules, [(adapter, eta)]), torch.no_grad():
            alone = components.unet(x[i : i + 1], t[i : i + 1], context[i : i + 1]).sample
        torch.testing.assert_close(both[i : i + 1], alone, **CLOSE)


def test_a_wrong_number_of_strengths_is_refused(components, random_adapter):
    with stacked(components.modules, [(random_adapter(components.modules), 1.0)]) as stack:
        with pytest.raises(SdloraError, match="2 strengths for 1 stacked adapters"):
            stack.set_strengths([1.0, 2.0])


def test_fused_is_one_cast_of_a_sum_in_single_precision(tiny_base, random_adapter):
    components = models.load(tiny_base, dtype=torch.bfloat16)
    adapters = [random_adapter(components.modules, seed=seed) for seed in range(3)]
    layers = named_layers(components.modules)
    name = next(iter(adapters[0].layers))
    original = layers[name].weight.clone()
    expected = (original.double() + sum(0.3 * adapter.layers[name].delta(original).double() for adapter in adapters)).bfloat16()
    with fused(components.modules, [(adapter, 0.3) for adapter in adapters]):
        difference = (layers[name].weight != expected).float().mean()
    assert difference < 0.002  # ties that fp32 and fp64 break differently
    assert torch.equal(layers[name].weight, original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nested_blocks_that_end_in_any_order_leave_no_trace(tiny_base, predict, random_adapter, dtype):
    components = models.load(tiny_base, dtype=dtype)
    one, two, three = (random_adapter(components.modules, EVERYTHING, seed=seed) for seed in range(3))
    output, before = predict(components), bits(components)
    a, b, c = fused(components.modules, [(one, 1.0)]), stacked(components.modules, [(two, 2.0)]), fused(components.modules, [(three, -1.0)])
    for block in (a, b, c):
        block.__enter__()
    a.__exit__(None, None, None)
    with fused(components.modules, [(three, -1.0)]):
        pass
    b.__exit__(None, None, None)
    alone = bits(components)
    c.__exit__(None, None, None)
    assert same(bits(components), before) and torch.equal(predict(components), output)
    with fused(components.modules, [(three, -1.0)]):
        assert same(bits(components), alone)  # what was fused earlier and is gone has left nothing behind either


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_random_walk_of_200_changes_leaves_every_tensor_bit_identical(tiny_base, predict, random_adapter, dtype):
    components = models.load(tiny_base, dtype=dtype)
    modules, draw = components.modules, random.Random(0)
    for layer in named_layers(modules).values():  # signed zeros are where "almost" shows
        layer.weight.data.view(-1)[:7] = -0.0
    targets = [("attention",), ("feed_forward", "text_mlp"), ("convolutions", "attention"), ("projections", "text_attention")]
    adapters = [random_adapter(modules, t, rank=1 + i, seed=i, size=1.0) for i, t in enumerate(targets)]
    output, before = predict(components), bits(components)
    blocks, values, is_trained = [], [], False
    for _ in range(200):
        match draw.choice(("on", "off", "strengths", "train")):
            case "on" if len(blocks) < 6:
                weighted = [(a, draw.choice((0.0, 1.0, draw.uniform(-2, 2)))) for a in draw.sample(adapters, draw.randint(1, 3))]
                blocks.append(applied(modules, weighted, draw.choice(("stacked", "fused"))))
                values.append(blocks[-1].__enter__())
            case "off" if blocks:
                i = draw.randrange(len(blocks))
                values.pop(i)
                blocks.pop(i).__exit__(None, None, None)
            case "strengths":
                for stack in filter(None, values):
                    stack.set_strengths([draw.uniform(-1, 1) for _ in stack.adapters])
            case "train":
                eject(modules) if is_trained else attach(modules, draw.choice(adapters))
                is_trained = not is_trained
    eject(modules)
    for block in draw.sample(blocks, len(blocks)):
        block.__exit__(None, None, None)
    assert same(bits(components), before) and torch.equal(predict(components), output)
    assert not any(layer._forward_hooks or "_fusion" in vars(layer) for layer in named_layers(modules).values())


def test_an_error_inside_a_block_takes_the_adapter_off(components, random_adapter):
    adapter, before = random_adapter(components.modules), bits(components)
    for how in ("stacked", "fused"):
        with pytest.raises(ZeroDivisionError), applied(components.modules, [(adapter, 1.0)], how):
            raise ZeroDivisionError
    assert same(bits(components), before)


def test_an_adapter_that_does_not_fit_touches_nothing(components, random_adapter):
    good, before = random_adapter(components.modules), bits(components)
    name = next(iter(good.layers))
    wrong_shape = Adapter({name: Lora(torch.randn(2, 5), torch.randn(7, 2), 1.0)})
    wrong_name = Adapter({**good.layers, "unet.nowhere": good.layers[name]})
    for how in ("stacked", "fused"):
        for bad, message in ((wrong_shape, "1 of 1 layers .* another shape"), (wrong_name, "1 of 57 layers .* do not exist")):
            with pytest.raises(SdloraError, match=message), applied(components.modules, [(good, 1.0), (bad, 1.0)], how):
                pass
    assert same(bits(components), before)


def test_only_the_injected_tensors_learn_and_they_are_single_precision(tiny_base):
    components = models.load(tiny_base, dtype=torch.bfloat16)
    names = select(components.modules, ("attention", "text_attention"))
    parameters = inject(components.modules, names, 4, 2.0, torch.Generator().manual_seed(0))
    learning = {id(p) for module in components.modules.values() for p in module.parameters() if p.requires_grad}
    assert learning == {id(p) for p in parameters} and len(parameters) == 2 * len(names)
    assert {p.dtype for p in parameters} == {torch.float32}
    x = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    context = components.text_encoders[0](torch.zeros(1, 77, dtype=torch.long)).last_hidden_state
    components.unet(x, torch.tensor([10]), context).sample.float().square().mean().backward()
    grown = [p for p in parameters if p.grad is not None and p.grad.any()]
    assert len(grown) == len(names)  # B learns; A's gradient is zero as long as B is


def test_extract_gives_back_what_was_attached_and_is_a_copy(components, random_adapter):
    adapter = random_adapter(components.modules, ("attention", "text_mlp"), rank=lambda i: 1 + i % 3, alpha=lambda i: 0.1 * (1 + i))
    parameters = attach(components.modules, adapter)
    try:
        taken = extract(components.modules, {"ss_output_name": "x"})
        with torch.no_grad():
            parameters[0].add_(1)
    finally:
        eject(components.modules)
    assert taken.metadata == {"ss_output_name": "x"} and taken.layers.keys() == adapter.layers.keys()
    for name, update in adapter.layers.items():
        assert torch.equal(taken.layers[name].a, update.a) and torch.equal(taken.layers[name].b, update.b)
        assert taken.layers[name].alpha == update.alpha
    assert not extract(components.modules).layers


def test_the_same_seed_gives_the_same_start_and_ranks_may_differ_by_layer(components):
    names = select(components.modules)[:3]
    starts = []
    for _ in range(2):
        rank = dict(zip(names, (1, 2, 3), strict=True))
        starts.append([p.detach().clone() for p in inject(components.modules, names, rank, 1.0, torch.Generator().manual_seed(7))])
        eject(components.modules)
    assert all(torch.equal(one, two) for one, two in zip(*starts, strict=True))
    assert [p.shape[0] for p in starts[0][::2]] == [1, 2, 3]


def test_two_trainable_updates_on_one_layer_are_refused(components, random_adapter):
    adapter = random_adapter(components.modules)
    with ExitStack() as stack:
        stack.callback(eject, components.modules)
        attach(components.modules, adapter)
        with pytest.raises(SdloraError, match="already carries a trainable update"):
            attach(components.modules, adapter)


def test_targets_are_the_named_groups(components):
    modules = components.modules
    names = select(modules)
    assert len(names) == 56 and all(".attn1.to_" in name or ".attn2.to_" in name for name in names)
    assert names == select(modules, ["attention"]) == select(modules, "attention")
    assert len(select(modules, ["feed_forward", "projections"])) == 28 and len(select(modules, ["text_attention", "text_mlp"])) == 12
    assert all(name.startswith("text_encoder.text_model.encoder.layers.") for name in select(modules, ["text_mlp"]))


def test_an_unknown_target_names_the_nearest_and_an_empty_one_is_refused(components):
    with pytest.raises(SdloraError, match="unknown target 'atention'; did you mean attention?"):
        select(components.modules, ["atention"])
    with pytest.raises(SdloraError, match="text_mlp has no layer in unet"):
        select({"unet": components.unet}, ["text_mlp"])
    with pytest.raises(SdloraError, match="unknown way to apply"):
        applied(components.modules, [], "fuse")


@pytest.mark.parametrize(("layer", "shape"), [(torch.nn.Linear(12, 9), (12,)), (torch.nn.Conv2d(12, 9, 3), (12, 5, 5))])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_layer_that_is_called_without_a_batch_has_its_update_and_keeps_its_shape(layer, shape, gradient):
    """An infinite number in an adapter at 0 takes the way of rows with strengths of their own."""
    generator, kernel = torch.Generator().manual_seed(2), layer.weight.shape[2:]
    a, b = torch.randn((2, 12, *kernel), generator=generator), torch.randn((9, 2, *(1 for _ in kernel)), generator=generator)
    update, x = Lora(a, b, 3.0), torch.randn(shape, generator=generator)
    adapter, wild = (Adapter({"unet.0": one}) for one in (update, Lora(torch.full_like(a, torch.inf), b, 1.0)))
    with torch.set_grad_enabled(gradient):
        expected = layer(x) + 0.5 * update.residual(x, layer)
        for weighted in ([(adapter, 0.5)], [(adapter, 0.5), (wild, 0.0)][: 1 if gradient else 2]):
            with stacked({"unet": torch.nn.Sequential(layer)}, weighted):
                torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_strengths_that_were_set_in_inference_mode_can_be_changed_and_differentiated_through_outside_of_it():
    layer, rows = torch.nn.Linear(4, 3), [[0.5], [2.0]]
    update = Lora(torch.randn(2, 4), torch.randn(3, 2), 2.0)
    with stacked({"unet": torch.nn.Sequential(layer)}, [(Adapter({"unet.0": update}), 1.0)]) as stack:
        with torch.inference_mode():
            stack.set_rows(rows[::-1])
        stack.set_rows(rows)
        x = torch.randn(2, 4, requires_grad=True)
        expected = layer.forward(x) + torch.tensor(rows) * update.residual(x, layer)
        torch.testing.assert_close(torch.autograd.grad(layer(x).sum(), x), torch.autograd.grad(expected.sum(), x))
