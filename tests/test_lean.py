"""Networks with less around the arithmetic: the same numbers, whatever the number of rows and of threads, and the model as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from sdlora import apply, hardware
from sdlora.benchmark.work import Counter
from sdlora.conditioning import Conditioning, predict
from sdlora.generation import Request, generate, guard
from sdlora.lean import copies, install, lean, pays
from sdlora.lean.layers import FEW, Convolution, Norm, Pointwise, Product
from sdlora.lean.once import Step

ROWS = 20
BOTH = "convolutions and products"


def inputs(rows: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn((rows, 4, side, side), generator=generator), torch.randn((rows, 77, 128), generator=generator)


def said(unet: nn.Module, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """By the U-Net, with one timestep for all rows as generation embeds it."""
    with unet.time_embedding.register_forward_pre_hook(lambda _, given: (given[0][:1], *given[1:])):
        return predict(unet, x.to(unet.dtype), torch.tensor(400.0), Conditioning(context.to(unet.dtype), None), None)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bits(model: nn.Module) -> list[bytes]:
    return [tensor.detach().numpy().tobytes() for tensor in model.state_dict().values()]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_without_packing_the_result_is_the_models_bit_for_bit(components):
    x, context = inputs(3)
    with lean(components.unet, room=0):
        found, picture = said(components.unet, x, context), components.vae.decode(x).sample
    assert torch.equal(found, said(components.unet, x, context))
    with lean(components.vae.decoder, room=0):
        assert torch.equal(components.vae.decode(x).sample, picture)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_packed_it_is_as_near_to_double_precision_as_the_model_itself(components, part: str):
    x, context = inputs(2)
    model, exact = getattr(components, part), deepcopy(getattr(components, part)).double()
    whole = model if part == "unet" else model.decoder

    def run(one: nn.Module) -> torch.Tensor:
        return said(one, x, context) if part == "unet" else one.decode(x.to(one.dtype)).sample

    truth = run(exact)
    plain = (run(model) - truth).abs().mean()
    with lean(whole):
        assert any(isinstance(vars(module).get("forward"), Convolution) for module in whole.modules())
        assert any(isinstance(vars(module).get("forward"), Norm) for module in whole.modules())
        packed = (run(model) - truth).abs().mean()
    assert 0 < packed < 4 * plain


@pytest.mark.parametrize("count", [1, 2])
def test_a_row_is_the_same_bits_among_any_number_of_rows_and_on_any_number_of_threads(components, count: int):
    x, context = inputs(ROWS)
    with lean(components.unet), threads(1):
        one = said(components.unet, x[7:8], context[7:8])
    with threads(count):
        for rows in (1, 2, 8, 16, ROWS):
            start = max(0, 8 - rows)  # row 7 is among them
            with lean(components.unet):
                found = said(components.unet, x[start : start + rows], context[start : start + rows])
            assert torch.equal(found[7 - start : 8 - start], one)


@pytest.mark.parametrize("positions", [1, 4, 15, 16, 77, 300])
@pytest.mark.parametrize(("inside", "out"), [(128, 1024), (1280, 320), (320, 2560)])
def test_a_product_is_exact_to_rounding_and_each_row_the_same_bits_among_any_number_on_any_number_of_threads(inside, out, positions):
    layer, generator = nn.Linear(inside, out), torch.Generator().manual_seed(0)
    x, product = torch.randn((ROWS, positions, inside), generator=generator), Product(layer, True)
    exact = deepcopy(layer).double()(x.double())
    found = []
    for count in (1, 2):
        with threads(count):
            found += [product(x[:rows])[0] for rows in (2, 8, ROWS, 16, 3)]
            found += [Product(layer, True)(x[:1])[0]] if positions >= FEW else []
    assert (product.packed is not None) == (positions >= FEW)
    torch.testing.assert_close(product(x).double(), exact, rtol=1e-5, atol=1e-5)
    assert positions < FEW or all(torch.equal(one, found[0]) for one in found)


def test_a_weight_that_comes_to_lie_where_another_one_lay_is_packed_anew():
    place, x = np.ones((320, 320), np.float32), torch.ones(2, 20, 320)
    layer = nn.Linear(320, 320, bias=False)
    layer.weight = nn.Parameter(torch.from_numpy(place))
    product, address = Product(layer, True), layer.weight.data_ptr()
    assert (product(x) == 320).all()
    place[:] = 2
    layer.weight = nn.Parameter(torch.from_numpy(place))
    assert layer.weight.data_ptr() == address and (product(x) == 640).all()


def test_rows_of_one_block_may_come_in_any_number(components):
    x, context = inputs(ROWS)
    with lean(components.unet):
        found = {rows: said(components.unet, x[:rows], context[:rows]) for rows in (2, ROWS, 1)}
    assert torch.equal(found[ROWS][:2], found[2]) and torch.equal(found[ROWS][:1], found[1])


def test_afterwards_the_model_is_as_it_was_even_after_an_error(components):
    before, (x, context) = bits(components.unet), inputs(2)
    plain = said(components.unet, x, context)
    with pytest.raises(KeyError), lean(components.unet):
        said(components.unet, x, context)
        raise KeyError
    assert bits(components.unet) == before
    assert not any("forward" in vars(module) for module in components.unet.modules())
    assert torch.equal(said(components.unet, x, context), plain)


def test_a_block_within_a_block_changes_nothing_and_leaves_the_outer_one(components):
    x, context = inputs(2)
    with lean(components.unet):
        outer = said(components.unet, x, context)
        with lean(components.unet, room=0):
            assert torch.equal(said(components.unet, x, context), outer)
        assert torch.equal(said(components.unet, x, context), outer)


def test_a_weight_that_is_written_to_is_packed_anew(components, random_adapter):
    x, context = inputs(2)
    adapter = random_adapter(components.modules, ("attention", "convolutions"))
    with apply.fused(components.modules, [(adapter, 1.0)]), lean(components.unet):
        fused = said(components.unet, x, context)
    with lean(components.unet):
        base = said(components.unet, x, context)
        with apply.fused(components.modules, [(adapter, 1.0)]):
            assert torch.equal(said(components.unet, x, context), fused)
        assert torch.equal(said(components.unet, x, context), base)
    assert (fused - base).abs().max() > 0.01


def test_stacked_adapters_act_on_all_layers_as_on_the_model_itself(components, random_adapter):
    x, context = inputs(2)
    adapter = random_adapter(components.modules, ("attention", "feed_forward", "convolutions"))
    with lean(components.unet):
        base = said(components.unet, x, context)
    with apply.stacked(components.modules, [(adapter, 1.0)]) as stack:
        plain = said(components.unet, x, context)
        with lean(components.unet):
            torch.testing.assert_close(said(components.unet, x, context), plain, rtol=1e-4, atol=1e-4)
            stack.set_rows([[0.0], [1.0]])
            mixed = said(components.unet, x, context)
            torch.testing.assert_close(mixed[1], plain[1], rtol=1e-4, atol=1e-4)
            assert torch.equal(mixed[0], base[0])
            stack.set_strengths([0.0])
            assert torch.equal(said(components.unet, x, context), base)
    assert (plain - base).abs().max() > 0.01


def test_in_half_precision_it_is_as_near_to_double_precision_as_the_model_itself(components):
    x, context = inputs(2)
    unet, truth = deepcopy(components.unet).bfloat16(), said(deepcopy(components.unet).double(), x, context)
    plain = (said(unet, x, context) - truth).abs().mean()
    with lean(unet):
        packed = (said(unet, x, context) - truth).abs().mean()
    assert packed < 1.5 * plain


def test_where_gradients_are_wanted_or_the_model_is_compiled_or_trains_nothing_is_replaced(components):
    def replaced() -> int:
        with lean(components.unet):
            return sum("forward" in vars(module) for module in components.unet.modules())

    assert replaced() > 50
    with torch.enable_grad():
        assert replaced() == 0
    with hardware.compiled(components.unet):
        assert replaced() == 0
    components.unet.train()
    try:
        assert replaced() == 0
    finally:
        components.unet.eval()


def test_what_the_blocks_leave_out_is_computed_by_diffusers_own(components):
    x, context = inputs(2)
    mask = torch.ones(2, 77)
    mask[:, 40:] = 0
    words = {"timestep": torch.tensor(400.0), "encoder_hidden_states": context, "encoder_attention_mask": mask}
    plain = components.unet(x, **words).sample
    with lean(components.unet, room=0):
        assert torch.equal(components.unet(x, **words).sample, plain)
        words.pop("encoder_attention_mask")
        assert (components.unet(x, **words).sample - plain).abs().max() > 1e-3


def test_a_prompt_in_several_parts_is_handed_on_to_a_processor_that_takes_it(components):
    block = components.unet.down_blocks[1].attentions[0].transformer_blocks[0]
    context, before = inputs(1)[1], block.attn2.processor

    class Parts(type(before)):  # as IP adapters' do
        def __call__(self, layers, x, encoder_hidden_states, **words):
            return super().__call__(layers, x, sum(encoder_hidden_states), **words)

    block.attn2.set_processor(Parts())
    try:
        x = torch.randn((1, 16, *block.norm1.normalized_shape), generator=torch.Generator().manual_seed(0))
        plain = block(x, encoder_hidden_states=(context, context))
        with lean(components.unet, room=0):
            assert torch.equal(block(x, encoder_hidden_states=(context, context)), plain)
    finally:
        block.attn2.set_processor(before)


def test_the_other_families_blocks_are_the_same_bit_for_bit_too(loaded):
    for kind in ("sd2", "sdxl"):
        base = loaded(kind)
        x, context = inputs(2)[0], torch.randn((2, 77, base.unet.config.cross_attention_dim), generator=torch.Generator().manual_seed(1))
        pooled = base.unet.config.projection_class_embeddings_input_dim
        words = {}
        if pooled:
            ids = torch.zeros(2, 6)
            wide = pooled - 6 * base.unet.config.addition_time_embed_dim
            words = {"added_cond_kwargs": {"text_embeds": torch.ones(2, wide), "time_ids": ids}}
        plain = base.unet(x, torch.tensor(400.0), encoder_hidden_states=context, **words).sample
        with lean(base.unet, room=0):
            assert torch.equal(base.unet(x, torch.tensor(400.0), encoder_hidden_states=context, **words).sample, plain)
        with lean(base.unet):
            packed = base.unet(x, torch.tensor(400.0), encoder_hidden_states=context, **words).sample
        torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


def test_the_copies_are_counted_by_the_bytes_of_what_is_packed(components):
    x, context = inputs(2, side=32)  # each layer but those of the timestep has positions enough
    with lean(components.unet) as taken:
        said(components.unet, x, context)
        own = [vars(module).get("forward") for module in components.unet.modules()]
        own = [one.own if isinstance(one, Step) else one for one in own]
        packed = [one.layer.weight.nbytes for one in own if getattr(one, "packed", None) is not None]
        pointwise = [one.product.layer.weight.nbytes for one in own if isinstance(one, Pointwise) and one.product.packed is not None]
    seldom = [one.layer.weight.nbytes for one in own if isinstance(one, Product) and one.packed is None]
    assert sum(packed) + sum(pointwise) + sum(seldom) == taken == copies(components.unet)
    assert sum(packed) > 0.9 * taken and len(seldom) <= 10


def test_a_step_counts_as_many_operations_packed_as_plain(components):
    x, context = inputs(2)

    def flops() -> int:
        with Counter() as counter:
            said(components.unet, x, context)
        return counter.flops

    plain = flops()
    with lean(components.unet):
        assert flops() == plain > 1e8


def drawn(components, **settings) -> np.ndarray:
    return np.asarray(next(generate(components, [Request("a cat face", seed=1, steps=2)], **settings)).image)


def packings(components, monkeypatch: pytest.MonkeyPatch, **settings) -> list[str]:
    """What was packed at each call of the U-Net."""
    found = []

    def look(*_) -> None:
        kinds = {type(vars(module).get("forward")) for module in components.unet.modules()}
        found.append(" and ".join(word for kind, word in ((Convolution, "convolutions"), (Product, "products")) if kind in kinds))

    with components.unet.register_forward_hook(look):
        drawn(components, **settings)
    return found


def test_generation_packs_within_a_quarter_of_the_free_memory_and_never_where_the_user_says_so(components, monkeypatch):
    both, first = copies(components.unet), install.copied(components.unet.modules(), install.convolves)
    monkeypatch.setattr(guard, "check", lambda *_: None)
    for free, packed in ((4 * both, BOTH), (4 * both - 1, "convolutions"), (4 * first, "convolutions"), (4 * first - 1, "")):
        monkeypatch.setattr(guard, "unused", lambda device, free=free: free)
        assert packings(components, monkeypatch) == [packed] * 2
    assert packings(components, monkeypatch, pack="always") == [BOTH] * 2
    monkeypatch.setattr(guard, "unused", lambda device: 1 << 40)
    assert packings(components, monkeypatch, pack=False) == [""] * 2
    assert guard.room(torch.device("cpu")) > guard.room(torch.device("cuda")) == 0


def test_large_copies_are_made_for_many_calls_alone(components, monkeypatch):
    assert pays(components.unet, 1)
    monkeypatch.setattr(install, "SMALL", 0)
    assert not pays(components.unet, 9) and pays(components.unet, 10)
    assert packings(components, monkeypatch) == [""] * 2
    monkeypatch.setattr(install, "CALLS", 2)
    assert packings(components, monkeypatch) == [BOTH] * 2


def test_packed_and_plain_draw_the_same_picture_to_one_level(components):
    one, two = (drawn(components, pack=pack).astype(int) for pack in (True, False))
    assert abs(one - two).max() <= 1


def test_layers_of_an_unusual_kind_stay_what_they_are():
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, groups=8, padding_mode="circular", padding=1)).eval()
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    plain = other(x)
    with lean(other):
        assert "forward" not in vars(other[2])
        torch.testing.assert_close(other(x), plain)


def test_the_group_norm_of_a_constant_picture_is_a_number():
    layer = nn.GroupNorm(2, 8, eps=1e-6).requires_grad_(False)
    nn.init.normal_(layer.bias)
    for value in (3.0, 1000.1, -54321.7):  # the mean of squares less the square of the mean is rounding alone, of either sign
        found = Norm(layer)(torch.full((2, 8, 5, 7), value))
        assert torch.isfinite(found).all()


def test_the_group_norm_is_as_exact_as_pytorch_s_however_far_the_pixels_are_from_zero():
    layer = nn.GroupNorm(4, 16, eps=1e-6).requires_grad_(False)
    pixels = torch.randn((1, 16, 12, 10), generator=torch.Generator().manual_seed(0))
    found = {}
    for offset in (0.0, 3.0, 10.0, 100.0, 1000.0):
        x = pixels + offset
        exact = deepcopy(layer).double()(x.double())
        found[offset] = Norm(layer)(x)
        assert (found[offset] - exact).abs().max() < 8 * max((layer(x) - exact).abs().max(), 1e-6)
    among = Norm(layer)(torch.cat([pixels + offset for offset in found]))
    assert all(torch.equal(among[i : i + 1], alone) for i, alone in enumerate(found.values()))


def test_under_autocast_the_model_stays_as_it_is_and_casts_what_it_would(components):
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(drawn(components), drawn(components, pack=False))
