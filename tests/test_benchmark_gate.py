"""What has to hold before any time is taken: the gate, the adapter under test, the conditions, and what each of them computes."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from benchmarks import OURS, small

from sdlora import apply, files
from sdlora.adapter import Adapter
from sdlora.benchmark import adapters, gate, measure, plan, second, work
from sdlora.benchmark.conditions import CONDITIONS, Subject, active
from sdlora.errors import SdloraError
from sdlora.generation import Request, generate


@pytest.fixture
def settings(tiny_base, tmp_path):
    return small(tiny_base, tmp_path / "out")


@pytest.fixture(scope="module")
def adapter(components):
    return adapters.obtain("random:rank=4", components)


def draw(components):
    return next(generate(components, [Request("a cat face", seed=1, steps=2)])).image


def test_a_sound_adapter_passes_the_gate(components, adapter):
    checks = gate.check(components, [(adapter, 1.0)], lambda: draw(components), bound=2)
    assert len(checks) == 7 and all(check.passed for check in checks)


def test_the_gate_refuses_an_adapter_that_does_nothing(components, adapter):
    idle = Adapter({name: replace(update, b=torch.zeros_like(update.b)) for name, update in adapter.layers.items()})
    with pytest.raises(SdloraError, match="gate failed[^~]*the adapter changes the image[^~]*: 0 of 255"):
        gate.check(components, [(idle, 1.0)], lambda: draw(components), bound=2)


def test_the_gate_refuses_ways_that_disagree(components, adapter, monkeypatch):
    @contextmanager
    def twice_when_fused(modules, weighted, how):
        with apply.applied(modules, [(a, 2 * eta if how == "fused" else eta) for a, eta in weighted], how):
            yield

    monkeypatch.setattr(gate, "applied", twice_when_fused)
    with pytest.raises(SdloraError, match="stacked and fused draw the same image"):
        gate.check(components, [(adapter, 1.0)], lambda: draw(components), bound=0)


def test_the_gate_refuses_a_removal_that_leaves_a_trace(components, adapter, monkeypatch):
    weight = components.unet.conv_out.weight
    before = weight.detach().clone()

    @contextmanager
    def forgetful(modules, weighted, how):
        with apply.applied(modules, weighted, how):
            yield
        with torch.no_grad():
            weight.view(-1)[0].add_(1e-6)

    monkeypatch.setattr(gate, "applied", forgetful)
    try:
        with pytest.raises(SdloraError, match="after removal every tensor is the base's"):
            gate.check(components, [(adapter, 1.0)], lambda: draw(components), bound=2)
    finally:
        weight.data.copy_(before)


def test_a_wrapper_left_behind_changes_the_fingerprint(components):
    before = gate.fingerprint(components)
    apply.inject(components.modules, apply.select(components.modules)[:1], 2, 2.0, torch.Generator())
    try:
        assert gate.fingerprint(components) != before
    finally:
        apply.eject(components.modules)
    assert gate.fingerprint(components) == before


def test_a_random_adapter_is_a_function_of_its_settings_and_changes_every_layer_alike(components, adapter):
    again = adapters.obtain("random:rank=4,seed=0", components)
    other = adapters.obtain("random:rank=4,seed=1", components)
    name = next(iter(adapter.layers))
    assert torch.equal(again.layers[name].b, adapter.layers[name].b) and not torch.equal(other.layers[name].b, adapter.layers[name].b)
    for name, layer in {n: m for n, m in adapters.named_layers(components.modules).items() if n in adapter.layers}.items():
        share = adapter.layers[name].delta(layer.weight).norm() / layer.weight.norm()
        assert share.item() == pytest.approx(adapters.SHARE, rel=1e-4)


@pytest.mark.parametrize("text", ["random:rnak=4", "random:rank=x", "random:rank=0", "random:targets=everything", "nowhere.safetensors"])
def test_an_adapter_that_does_not_exist_is_one_clear_error(text, components):
    with pytest.raises(SdloraError):
        adapters.obtain(text, components)


def test_a_file_is_taken_as_adapter(components, adapter, tmp_path):
    files.save(adapter, tmp_path / "a.safetensors")
    assert adapters.obtain(str(tmp_path / "a.safetensors"), components).parameters == adapter.parameters


def test_every_condition_is_active_while_it_lasts_and_gone_afterwards(components, adapter):
    before = gate.fingerprint(components)
    base = gate.image_hash(draw(components))
    subject = Subject(components, {"a cat face": adapters.companions(adapter, components, 8)}, 1.0, None, None, second.made(components))
    for name in (name for name, condition in CONDITIONS.items() if not condition.stock):
        with active(subject, name, "a cat face") as found:
            image = found.draw([Request("a cat face", seed=1, steps=2)])[0]
            assert (gate.image_hash(image) == base) == (name in ("base", "base again", "idle", "compiled")), name
    assert gate.fingerprint(components) == before


def test_companions_have_the_shapes_of_the_adapter_and_are_all_different(components, adapter):
    several = adapters.companions(adapter, components, 3)
    assert several[0] is adapter and len({one.layers[name].b.sum().item() for one in several for name in list(adapter.layers)[:1]}) == 3
    for one in several:
        assert {n: (u.shape, u.rank) for n, u in one.layers.items()} == {n: (u.shape, u.rank) for n, u in adapter.layers.items()}


def test_phases_are_parts_of_the_sample_and_every_step_is_counted(settings, components, adapter):
    subject = Subject(components, {"a cat face": (adapter,)}, 1.0, None, None)
    block = plan.Block(0, "a cat face", 1, ("stacked",))
    sample, images = measure.timed(subject, block, 0, settings)
    assert len(sample.steps) == 2 and len(images) == 1 and min(sample.text, sample.vae, sample.save, sample.cpu, *sample.steps) > 0
    assert sample.text + sum(sample.steps) + sample.vae < sample.seconds
    watched = [*components.modules.values(), components.vae.decoder]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched)


def test_the_gate_refuses_a_condition_that_starts_from_other_noise(components, adapter, monkeypatch):
    subject = Subject(components, {"a cat face": (adapter,)}, 1.0, None, None)
    seeds = iter(range(100))
    original = gate.first_input

    def reseeded(unet, draw):
        noise, image = original(unet, draw)
        return noise + next(seeds), image

    monkeypatch.setattr(gate, "first_input", reseeded)
    with pytest.raises(SdloraError, match="start from the same noise"):
        gate.conditions(subject, OURS, "a cat face", [Request("a cat face", seed=1, steps=1)], (2, 8))


@pytest.mark.slow
def test_a_random_base_draws_what_stock_diffusers_draws_from_the_same_tensors(bases):
    from sdlora.benchmark import bases as made
    from sdlora.benchmark import stock
    from sdlora.checkpoints import configs

    packaged = configs.packaged("sdxl")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        narrow = json.loads((bases("sdxl") / part / "config.json").read_text())
        packaged[part] |= {key: value for key, value in narrow.items() if key in packaged[part] and key != "vocab_size"}
    first = made.made("sdxl", torch.device("cpu"), torch.float32, packaged=packaged)
    request = Request("a cat", seed=1, steps=2, guidance=4.0)
    ours, theirs = next(generate(first, [request])).image, stock.Stock(first, fuses=False).draw([request])[0]
    assert gate.difference(ours, theirs) <= 2 and ours.convert("L").getextrema()[0] < ours.convert("L").getextrema()[1]
    tensors = {id(p) for p in first.unet.parameters()}
    assert tensors == {id(p) for p in stock.doubled(first.unet, weights=False).parameters()}
    assert not tensors & {id(p) for p in stock.doubled(first.unet, weights=True).parameters()}


def test_random_weights_are_a_function_of_the_generator_and_keep_the_scale_of_their_input():
    from sdlora.benchmark import bases

    def drawn(seed, name="weight", shape=(64, 32, 3, 3)):
        return bases.drawn(torch.empty(shape), name, torch.Generator().manual_seed(seed), torch.device("cpu"), torch.float32)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    assert drawn(1).var().item() * 32 * 9 == pytest.approx(1, abs=0.05)
    assert drawn(1, "norm.weight", (8,)).unique().tolist() == [1] and drawn(1, "norm.bias", (8,)).unique().tolist() == [0]


def test_the_arithmetic_of_a_stacked_step_is_the_bases_and_that_of_its_bottlenecks(components, adapter):
    subject = Subject(components, {"a cat": adapters.companions(adapter, components, 8)}, 1.0, None, None)
    names = ("base", "fused", "stacked", "stacked 8")
    found = {one.condition: one for one in work.measure(subject, names, "a cat", [Request("a cat", seed=1, guidance=1.0)])}
    assert found["base"].flops == found["fused"].flops
    one, eight = (found[name].flops - found["base"].flops for name in ("stacked", "stacked 8"))
    assert 0 < one < 0.2 * found["base"].flops and one <= eight <= 8 * one
    assert found["stacked"].bytes > found["base"].bytes


def test_each_picture_of_a_batch_has_its_own_adapter(components, adapter):
    several = adapters.companions(adapter, components, 8)
    subject = Subject(components, {"a cat": several}, 1.0, None, None)
    wanted = [Request("a cat", seed=seed, steps=1) for seed in (1, 2)]
    with active(subject, "own 8", "a cat") as found:
        pictures = found.draw(wanted)
    for one, request, picture in zip(several, wanted, pictures, strict=False):
        alone = next(generate(components, [request], [(one, 1.0)])).image
        assert gate.difference(alone, picture) <= 1
    checks = gate.conditions(subject, ("base", "own 8"), "a cat", wanted, (2, 8))
    assert any(check.law.startswith("own 8 draws what it should") for check in checks)
