"""Laws of folded layers: what stacked adapters say, for the price of the base, out of another weight that is gone afterwards."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sdlora import hardware
from sdlora.adapter import Adapter
from sdlora.apply import folding, fused, stacked
from sdlora.apply.fold import CALL, COPY, FOLDING, OUTPUT, PAIR
from sdlora.generation import Request, generate, guard
from sdlora.kinds.lora import Lora
from sdlora.layers import adaptable
from sdlora.lean.layers import Product

EVERYTHING = ("attention", "feed_forward", "projections", "convolutions", "shortcuts", "time_projections")
ROOM = 1 << 40


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def adapters(components, random_adapter):
    return [random_adapter(components.modules, EVERYTHING, rank=r, seed=r, size=0.05) for r in (3, 5)]


@pytest.fixture(autouse=True)
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call on the fly is taken for so dear that the first of any layer folds it."""
    monkeypatch.setattr("sdlora.apply.fold.CALL", 10**9)


def output(components, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn((rows, 4, 8, 8), generator=generator), torch.randn((rows, 77, 128), generator=generator)
    return components.unet(x, torch.tensor(500.0), context).sample


def weights(components) -> list[torch.Tensor]:
    return [layer.weight for layer in adaptable(components.unet).values()]


def replaced(components, before: list[torch.Tensor]) -> int:
    return sum(now is not then for now, then in zip(weights(components), before, strict=True))


def on(components, adapters, *etas: float):
    return stacked(components.modules, list(zip(adapters, etas, strict=True)))


def test_folded_layers_say_what_stacked_and_fused_ones_say(components, adapters):
    before = weights(components)
    with on(components, adapters, 0.7, -0.4):
        expected = output(components)
        with folding(components.unet, ROOM):
            for _ in range(3):
                found = output(components)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert replaced(components, before) == len(adapters[0].layers)
    with fused(components.modules, [(adapters[0], 0.7), (adapters[1], -0.4)]):
        torch.testing.assert_close(found, output(components), rtol=1e-4, atol=1e-5)
    assert (expected - output(components)).abs().max() > 0.01


def test_after_the_block_each_layer_has_the_very_tensor_that_it_had(components, adapters):
    before, base = weights(components), output(components)
    copies = [weight.clone() for weight in before]
    with pytest.raises(KeyError), on(components, adapters, 1.0, 1.0), folding(components.unet, ROOM):
        output(components)
        assert replaced(components, before)
        raise KeyError
    assert not replaced(components, before) and all(map(torch.equal, before, copies))
    assert not any(FOLDING in vars(module) or module._forward_hooks for module in components.unet.modules())
    assert torch.equal(output(components), base)


def test_a_changed_strength_acts_at_the_next_call_and_zero_is_the_base_bit_for_bit(components, adapters):
    base, before = output(components), weights(components)
    for etas in ((1.0, 0.0), (0.3, -1.0), (0.0, 0.0), (0.0, 0.5)):
        with on(components, adapters, *etas):
            expected = output(components)
        with on(components, adapters, 0.6, 0.6) as stack, folding(components.unet, ROOM):
            output(components)
            stack.set_strengths(etas)
            for _ in range(2):
                torch.testing.assert_close(found := output(components), expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(found, base) == (not any(etas)) and bool(replaced(components, before)) == any(etas)


def test_rows_with_strengths_of_their_own_are_never_folded(components, adapters):
    before = weights(components)
    with on(components, adapters, 1.0, 1.0) as stack:
        stack.set_rows([[1.0, 0.0], [0.0, 1.0]])
        expected = output(components)
        with folding(components.unet, ROOM):
            stack.set_rows([[1.0, 1.0], [1.0, 1.0]])
            output(components)
            assert replaced(components, before)
            stack.set_rows([[1.0, 0.0], [0.0, 1.0]])
            for _ in range(3):
                assert torch.equal(output(components), expected)
            assert not replaced(components, before)


def test_equal_strengths_of_another_number_of_rows_leave_folded_what_is_folded(components, adapters):
    before = weights(components)
    with on(components, adapters, 1.0, 0.5) as stack, folding(components.unet, ROOM):
        stack.set_rows([[1.0, 0.5]] * 2)
        output(components)
        count = replaced(components, before)
        stack.set_rows([[1.0, 0.5]] * 3)
        assert count == replaced(components, before) > 0


def test_no_more_memory_is_taken_than_there_is_and_what_is_given_back_can_be_had_again(components, adapters):
    before = weights(components)
    room = 100_000
    with on(components, adapters, 1.0, 0.5) as stack, folding(components.unet, room):
        for eta in (0.5, 1.0):
            stack.set_strengths([eta, eta])
            output(components)
            taken = sum(now.nbytes for now, then in zip(weights(components), before, strict=True) if now is not then)
            assert 0.8 * room < taken <= room
    with on(components, adapters, 1.0, 0.5), folding(components.unet, 0):
        output(components)
        assert not replaced(components, before)


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_stacks_that_are_folded_either_may_go_first_and_the_base_is_left(components, adapters, first):
    base, before = output(components), weights(components)
    with on(components, adapters, 1.0, 1.0):
        both = output(components)
    with folding(components.unet, ROOM):
        blocks = [on(components, [adapter], 1.0) for adapter in adapters]
        for block in blocks:
            block.__enter__()
            output(components)
        assert replaced(components, before) == len(adapters[0].layers)
        torch.testing.assert_close(output(components), both, rtol=1e-4, atol=1e-5)
        blocks[first].__exit__(None, None, None)
        found = output(components), output(components)
        blocks[1 - first].__exit__(None, None, None)
        assert torch.equal(output(components), base) and not replaced(components, before)
    with on(components, [adapters[1 - first]], 1.0):
        for one in found:
            torch.testing.assert_close(one, output(components), rtol=1e-4, atol=1e-5)


def test_who_fuses_inside_the_block_finds_and_leaves_the_weights_themselves(components, adapters):
    base, before = output(components), weights(components)
    copies = [weight.clone() for weight in before]
    with folding(components.unet, ROOM):
        with on(components, adapters[:1], 1.0):
            output(components)
            with fused(components.modules, [(adapters[1], 1.0)]):
                both = output(components)
                output(components)
        with on(components, adapters, 1.0, 1.0):
            torch.testing.assert_close(output(components), both, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, before, copies)) and torch.equal(output(components), base)


def test_set_strengths_after_the_block_of_a_stack_changes_nothing(components, adapters):
    base = output(components)
    with on(components, adapters, 1.0, 1.0) as stack:
        pass
    stack.set_strengths([2.0, 2.0])
    assert torch.equal(output(components), base)


@pytest.mark.parametrize(("shape", "rank", "positions"), [((64, 32), 2, 100), ((16, 16), 40, 7), ((512, 512), 8, 1)])
def test_a_layer_is_folded_when_its_update_has_cost_as_much_as_the_sum_does(monkeypatch, shape, rank, positions):
    monkeypatch.setattr("sdlora.apply.fold.CALL", CALL)
    (out, inside), layer = shape, nn.Linear(shape[1], shape[0], bias=False)
    adapter = Adapter({"unet.layer": Lora(torch.ones(rank, inside), torch.ones(out, rank), float(rank))})
    model, weight = nn.ModuleDict({"layer": layer}), layer.weight
    call = CALL + PAIR * positions * (min(rank * (out + inside), out * inside) + OUTPUT * out)
    price = out * inside * (rank + COPY)
    with stacked({"unet": model}, [(adapter, 1.0)]) as stack:
        for _ in range(2):  # what was bought is gone after the block: the next one rents anew
            with folding(model, ROOM):
                count = 0
                while layer.weight is weight:
                    layer(torch.ones(3, positions, inside))
                    count += 1
                assert stack.joined["unet.layer"].delta is None  # nor is ΔW kept beside W + ΔW
            assert (count - 1) * call < price <= count * call


def test_a_weight_that_is_computed_from_others_is_left_alone():
    layer = nn.Linear(8, 8)
    adapter, model = Adapter({"unet.layer": Lora(torch.ones(2, 8), torch.ones(8, 2), 2.0)}), nn.ModuleDict({"layer": layer})
    torch.nn.utils.parametrizations.weight_norm(layer)
    x = torch.ones(3, 8)
    with stacked({"unet": model}, [(adapter, 1.0)]):
        expected = layer(x)
        with folding(model, ROOM):
            for _ in range(3):
                assert torch.equal(layer(x), expected)
    assert "weight" not in layer._parameters and not torch.equal(layer(x), expected)


def test_another_hook_sees_the_update_in_the_output_before_while_and_after_the_layer_is_folded():
    layer, x, seen = nn.Linear(8, 8), torch.ones(3, 8), []
    adapter, model = Adapter({"unet.layer": Lora(torch.ones(2, 8), torch.ones(8, 2), 2.0)}), nn.ModuleDict({"layer": layer})
    with stacked({"unet": model}, [(adapter, 0.0)]) as stack, layer.register_forward_hook(lambda *call: seen.append(call[2].clone())):
        stack.set_strengths([1.0])
        layer(x)
    with stacked({"unet": model}, [(adapter, 1.0)]) as stack:
        with folding(model, ROOM):
            layer(x)
            with layer.register_forward_hook(lambda *call: seen.append(call[2].clone())):
                layer(x)
                stack.set_strengths([2.0])
                layer(x)
    base, update = layer(x), x @ torch.full((8, 8), 2.0)
    for found, eta in zip(seen, (1, 1, 2), strict=True):
        torch.testing.assert_close(found, base + eta * update)


def test_a_packed_copy_is_of_the_present_weight_even_where_that_took_the_place_in_memory_of_another():
    layer = nn.Linear(512, 512, bias=False, device="cpu").requires_grad_(False)
    with torch.inference_mode(False):
        memory = torch.randn(512, 512)
        x = torch.randn(1, 32, 512)
        product = Product(layer, True)
        for factor in (1.0, 2.0):
            changed = memory.numpy()  # written to without a word to torch, as an allocator does
            changed *= factor
            layer._parameters["weight"] = nn.Parameter(torch.from_numpy(changed), requires_grad=False)
            torch.testing.assert_close(product(x), x @ layer.weight.T, rtol=1e-4, atol=1e-4)


def test_short_floats_stay_on_the_fly(components, adapters):
    layer = nn.Linear(8, 8).to(torch.bfloat16)
    adapter, model = Adapter({"unet.layer": Lora(torch.ones(2, 8), torch.ones(8, 2), 2.0)}), nn.ModuleDict({"layer": layer})
    before = layer.weight
    with stacked({"unet": model}, [(adapter, 1.0)]), folding(model, ROOM):
        for _ in range(5):
            layer(torch.ones(3, 8, dtype=torch.bfloat16))
        assert layer.weight is before


class Seen:
    """How many weights are not the base's after each step of a drawing."""

    def __init__(self, components):
        self.components, self.before, self.counts = components, weights(components), []

    def __call__(self, state) -> None:
        self.counts.append(replaced(self.components, self.before))


@pytest.fixture
def ample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "unused", lambda device: 1 << 40)


@pytest.mark.parametrize("pack", [True, False])
def test_a_drawing_folds_where_copies_are_allowed_and_draws_the_same(components, adapters, ample, pack):
    request, weighted = Request("a cat", seed=1, steps=4, width=64, height=64), [(adapters[0], 1.0)]
    seen = Seen(components)
    (folded,) = generate(components, [request], weighted, "stacked", callback=seen, pack=pack)
    assert bool(max(seen.counts)) == pack and replaced(components, seen.before) == 0
    (other,) = generate(components, [request], weighted, "fused", pack=pack)
    assert max(abs(a - b) for a, b in zip(folded.image.tobytes(), other.image.tobytes(), strict=True)) <= 1


def test_strengths_that_change_with_the_steps_are_drawn_as_without_folding(components, adapters, ample, monkeypatch):
    request, weighted = Request("a cat", seed=1, steps=6, width=64, height=64), [(adapters[0], "1@0-0.5,-1@0.5-1"), (adapters[1], 0.5)]
    seen = Seen(components)
    (folded,) = generate(components, [request], weighted, "stacked", callback=seen)
    assert max(seen.counts)
    monkeypatch.setattr(guard, "unused", lambda device: 0)
    monkeypatch.setattr(guard, "check", lambda *_: None)
    (other,) = generate(components, [request], weighted, "stacked")
    assert max(abs(a - b) for a, b in zip(folded.image.tobytes(), other.image.tobytes(), strict=True)) <= 1


@pytest.mark.parametrize("how", ["compiled", "on another device"])
def test_nothing_is_folded_where_the_unet_is_compiled_or_not_on_the_cpu(components, adapters, how):
    before = weights(components)
    with on(components, adapters, 1.0, 1.0), hardware.compiled(components.unet, how == "compiled"):
        room = ROOM if how == "compiled" else guard.room(torch.device("cuda"), always=True)
        with folding(components.unet, room), hardware.plain(components.unet):
            output(components)
        assert not replaced(components, before)


def test_a_picture_does_not_depend_on_its_batch_to_the_last_bit_whenever_layers_fold(components, random_adapter, ample, monkeypatch):
    adapter = random_adapter(components.modules, ("attention", "feed_forward"), rank=8)
    monkeypatch.setattr("sdlora.apply.fold.CALL", CALL)
    requests = [Request("a cat", seed=seed, steps=12, width=64, height=64) for seed in (1, 2, 3)]
    counts, pictures = [], []
    for batch in (3, 1):
        seen = Seen(components)
        pictures.append([p.image.tobytes() for p in generate(components, requests, [(adapter, 1.0)], "stacked", batch, seen)])
        counts.append(seen.counts[:12])
    assert pictures[0] == pictures[1] and counts[0] == counts[1]
    assert 0 < max(counts[0]) and len(set(counts[0])) > 2, "not all at once"
