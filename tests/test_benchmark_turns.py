"""Steps that take turns: who draws when, and that nobody notices."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from benchmarks import in_turns

from sdlora import benchmark, config, hardware
from sdlora.benchmark import (
    BenchmarkConfig,
    adapters,
    gate,
    handling,
    measure,
    plan,
    second,
    stock,
)
from sdlora.benchmark.conditions import Subject, active
from sdlora.benchmark.turns import together
from sdlora.errors import SdloraError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def subject(components):
    """A base with its second set and the reference."""
    several = adapters.companions(adapters.obtain("random:rank=4", components), components, 1)
    both = second.made(components)
    return Subject(components, {"a cat face": several}, 1.0, None, stock.Stock(components, fuses=False), both)


@pytest.fixture
def settings(tiny_base, tmp_path):
    return in_turns(tiny_base, tmp_path / "out")


def counting(name, steps, said):
    def draw(pause):
        for step in range(1, steps + 1):
            said.append((name, step))
            pause(step)
        said.append((name, "end"))
        return name

    return draw


def test_drawings_go_on_by_one_step_each_in_the_order_given_until_all_are_over():
    said = []
    first, other = together([counting("a", 2, said), counting("b", 3, said)], CPU)
    assert said == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", "end"), ("b", 3), ("b", "end")]
    assert (first.result, other.result) == ("a", "b")
    assert [turn.step for turn in other.turns] == [1, 2, 3, 0] and [turn.pure for turn in other.turns] == [False, True, True, False]
    assert all(turn.seconds > 0 for turn in first.turns)


def test_a_drawing_that_fails_ends_the_others_and_they_let_go_of_what_they_hold():
    held = []

    @contextmanager
    def holding():
        held.append("taken")
        try:
            yield
        finally:
            held.append("let go")

    def patient(pause):
        with holding():
            pause(1)
            pause(2)

    def failing(pause):
        pause(1)
        raise SdloraError("no")

    with pytest.raises(SdloraError, match="no"):
        together([patient, failing], CPU)
    assert held == ["taken", "let go"] and not torch.is_inference_mode_enabled()


def test_the_mode_of_a_drawing_that_ends_first_does_not_leave_with_it():
    modes = []

    @torch.inference_mode()
    def draw(pause, steps):
        for step in range(1, steps + 1):
            pause(step)
            modes.append(torch.is_inference_mode_enabled())

    together([lambda pause: draw(pause, 1), lambda pause: draw(pause, 3)], CPU)
    assert all(modes) and len(modes) == 4 and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("base again", plan.Roles(True, True)),
        ("fused", plan.Roles(False, True)),
        ("stacked", plan.Roles(True, False)),
        ("diffusers", plan.Roles(False, True)),
    ],
)
def test_in_turns_every_condition_draws_what_it_draws_alone(subject, settings, name, roles):
    wanted = measure.requests(settings, "a cat face", 1)
    alone = {}
    for one in ("base", name):
        with active(subject, one, "a cat face") as condition:
            alone[one] = condition.draw(wanted)[0]
    prints = [gate.fingerprint(components) for components in (subject.components, subject.second)]
    (base, [of_base]), (sample, [picture]) = measure.timed_in_turns(
        subject, plan.Block(5, "a cat face", 1, ("base", name)), 1, settings, roles, pack=True
    )
    assert gate.difference(of_base, alone["base"]) <= 1 and gate.difference(picture, alone[name]) <= 1  # tensors lie elsewhere
    assert (base.condition, base.rival, sample.condition, sample.rival) == ("base", name, name, "")
    assert len(base.turns) == len(sample.turns) == 3 == len(sample.turns_cpu) and len(sample.steps) == 4
    assert sum(sample.turns) < sample.seconds and sample.vae > 0 < sample.text
    assert prints == [gate.fingerprint(components) for components in (subject.components, subject.second)]


def test_a_batch_after_another_begins_anew_and_its_first_step_is_left_out(subject, settings):
    several = settings.model_copy(update={"images": 2, "batch": 1})
    one_by_one = replace(subject, batch=1)
    block = plan.Block(0, "a cat face", 1, ("stacked", "diffusers"))
    for place in (0, 1):
        for sample, pictures in measure.timed_in_turns(one_by_one, block, place, several, plan.Roles(True, False), pack=False):
            assert len(sample.turns) == 2 * 3 and len(pictures) == 2


def test_a_second_set_has_the_same_weights_and_shares_none(components):
    other = second.made(components)
    assert gate.fingerprint(other) == gate.fingerprint(components)
    ours, theirs = ({t.data_ptr() for m in (*c.modules.values(), c.vae) for t in m.parameters()} for c in (components, other))
    assert not ours & theirs


def test_the_reference_which_holds_the_first_sets_tensors_takes_turns_with_the_base_on_the_second(subject):
    for swapped in (False, True):
        assert subject.sets("diffusers", swapped) == (subject.components, subject.second)
        assert subject.sets("compiled", swapped) == (subject.second, subject.components)
    assert subject.sets("fused", True) == subject.sets("fused", False)[::-1]


def test_a_second_set_that_the_memory_does_not_hold_is_refused_with_what_to_do(components, monkeypatch):
    monkeypatch.setattr(second.guard, "unused", lambda device: second.size(components) - 1)
    with pytest.raises(SdloraError, match="a second set of .* GiB are free on cpu.*pairing = pictures"):
        second.made(components)
    monkeypatch.setattr(second.guard, "unused", lambda device: second.size(components))
    assert second.made(components).unet is not components.unet


def test_both_pack_where_the_second_still_finds_room_for_it(components, monkeypatch):
    copied = second.copies(components.unet)
    for free, packed in ((3 * copied, True), (3 * copied - 1, False)):
        monkeypatch.setattr(second.guard, "unused", lambda device, free=free: free)
        assert second.packs(components) is packed


@pytest.mark.parametrize("pack", [True, False])
def test_both_pack_or_neither_does_however_much_memory_the_first_ones_copies_leave(subject, settings, monkeypatch, pack):
    monkeypatch.setattr(second.guard, "unused", lambda device: 0 if pack else 1 << 40)
    monkeypatch.setattr(second.guard, "check", lambda *_: None)
    found = []
    with ExitStack() as hooks:
        for components in (subject.components, subject.second):
            first = components.unet.conv_in
            look = lambda *_, first=first: found.append("forward" in vars(first))  # noqa: E731
            hooks.enter_context(components.unet.register_forward_hook(look))
        measure.timed_in_turns(subject, plan.Block(0, "a cat face", 1, ("base", "stacked")), 1, settings, plan.Roles(True, False), pack)
    assert len(found) >= 8 and set(found) == {pack}


def test_in_four_blocks_a_condition_has_every_role_once_in_an_order_of_its_own():
    for number in range(6):
        found = [plan.roles(block, number, seed=0) for block in range(8)]
        assert len(set(found[:4])) == len(set(found[4:])) == 4
        assert found == [plan.roles(block, number, seed=0) for block in range(8)]
    assert len({tuple(plan.roles(block, number, seed=0) for block in range(4)) for number in range(12)}) > 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["steps=1"], "pairing = steps compares the steps"),
        (["pairing=pictures", "warmup=0"], "warmup is 0"),
        (["pairing=pairs"], "pairing"),
        (["conditions=['base']"], "conditions names the base alone"),
    ],
)
def test_a_pairing_that_cannot_be_is_refused(change, words):
    with pytest.raises(SdloraError, match=words):
        config.load(BenchmarkConfig, None, change)


def test_a_benchmark_in_turns_runs_from_end_to_end(settings, components, monkeypatch):
    monkeypatch.setattr(handling, "measure", lambda *arguments: ())  # its time has tests of its own
    few = {"conditions": ("base", "base again", "stacked"), "blocks": 2, "rounds": 0, "checked": 2}
    outcome = benchmark.run(settings.model_copy(update=few), components)
    assert outcome.result.complete and len(outcome.result.samples) == 2 * 2 * 2
    assert "packed_convolutions" in outcome.result.environment
    assert {row.condition for row in outcome.analysis.rows if row.turns} == {"base again", "stacked"}
    assert sum("second set" in check.law for check in outcome.result.gate) == 1
    assert {one.condition for one in outcome.result.pictures} == {"base", "base again", "stacked"}
    assert all((outcome.json.parent / one.file).is_file() for one in outcome.result.pictures)


def test_what_is_compiled_is_refused_where_nothing_compiles(settings, components, monkeypatch):
    monkeypatch.setattr(second.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SdloraError, match=r"neither g\+\+ nor clang\+\+ is here"):
        benchmark.run(settings.model_copy(update={"conditions": ("base", "compiled")}), components)


def test_an_adapter_on_the_fly_is_never_compiled():
    with pytest.raises(SdloraError, match="unknown condition.*stacked compiled"):
        benchmark.run(BenchmarkConfig(conditions=("stacked compiled",), base="/nowhere"))


@pytest.mark.slow
def test_compiled_conditions_draw_what_they_should_beside_a_base_that_is_not_compiled(settings, components, monkeypatch):
    """With the backend that traces and compiles nothing: minutes less, and hooks and weights are seen, or not, all the same."""
    monkeypatch.setattr(second, "check_compiler", lambda device: None)
    monkeypatch.setattr(hardware, "compile_calls", lambda module: module.compile(backend="eager"))
    monkeypatch.setattr(handling, "measure", lambda *arguments: ())
    names = ("base", "compiled", "fused compiled")
    outcome = benchmark.run(settings.model_copy(update={"conditions": names, "blocks": 2, "rounds": 0}), components)
    assert any(check.law.startswith("fused compiled draws what it should") for check in outcome.result.gate)
    assert any(one.operation.startswith("torch.compile") for one in outcome.result.handling)
    assert all(sample.steps and min(sample.steps) > 0 for sample in outcome.result.samples)
