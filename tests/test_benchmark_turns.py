"""Steps that take turns: who draws when, that nobody notices, what is made of the times, and what is said of it."""

import json
import math
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import invented, small

from sdlora import benchmark, config, hardware
from sdlora.benchmark import (
    BenchmarkConfig,
    adapters,
    compared,
    gate,
    handling,
    measure,
    plan,
    plot,
    report,
    result,
    second,
    statistics,
    stock,
)
from sdlora.benchmark.conditions import CONDITIONS, Subject, active
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
    return small(tiny_base, tmp_path / "out").model_copy(update={"pairing": "steps", "steps": 4})


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


def taken(rng, ratio, blocks, steps=19, lasting=0.003):
    """d of every block, by its steps and by sums: a machine whose speed wanders, with interruptions of a heavy tail.

    Speed is autocorrelated from turn to turn (0.95) and differs between blocks; every step has noise of its own of 2 %; one in twenty
    is interrupted, for a share of itself of Pareto's distribution with index 1.5, whose variance is infinite. `lasting`: what sets the
    two drawings of one block apart throughout it.
    """
    speed = np.zeros((blocks, 2 * steps))
    speed[:, 0] = rng.normal(0, 0.03, blocks)
    for i in range(1, 2 * steps):
        speed[:, i] = 0.95 * speed[:, i - 1] + rng.normal(0, 0.01, blocks)
    noise = np.exp(rng.normal(0, 0.02, speed.shape)) * (1 + rng.pareto(1.5, speed.shape) * (rng.random(speed.shape) < 0.05))
    times = 0.02 * np.exp(rng.normal(0, 0.2, (blocks, 1)) + speed) * noise
    own, base = times[:, ::2] * ratio * np.exp(rng.normal(0, lasting, (blocks, 1))), times[:, 1::2]
    return np.array([statistics.of_steps(*pair) for pair in zip(own, base, strict=True)]), np.log(own.sum(1) / base.sum(1))


def test_of_steps_that_wander_and_are_interrupted_the_interval_covers_and_equivalence_is_not_claimed_too_often():
    rng, trials = np.random.default_rng(21), 300
    found = [statistics.judged(taken(rng, 1.01, 12)[0], 0.01, resamples=400, seed=i) for i in range(trials)]
    covered, claimed = np.mean([c.low <= 1.01 <= c.high for c in found]), np.mean([c.verdict == "equivalent" for c in found])
    assert covered >= 0.95 - 2.6 * math.sqrt(0.05 * 0.95 / trials)  # what so many trials leave open
    assert claimed <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / trials)


def test_pictures_count_once_each_for_steps_of_one_picture_depend_on_each_other():
    """Taken for 12 × 19 independent pairs the same times leave the truth out far more often than they say."""
    rng, wrong, right = np.random.default_rng(22), [], []
    for _ in range(200):
        d = rng.normal(0, 0.005, (12, 1)) + rng.normal(0, 0.005, (12, 19))
        for values, found in ((d.ravel(), wrong), ([statistics.of_steps(np.exp(row), np.ones(19)) for row in d], right)):
            low, high = statistics.mean_interval(np.asarray(values), 0.95, 300, rng)
            found.append(low <= 0 <= high)
    assert np.mean(wrong) < 0.75 and np.mean(right) > 0.90


def test_twenty_four_pictures_in_turns_prove_one_per_cent_where_their_sums_do_not():
    rng = np.random.default_rng(23)
    both = [[statistics.judged(d, 0.01, resamples=400) for d in taken(rng, 1.0, 24)] for _ in range(30)]
    by_steps, by_sums = ([c.verdict for c in found].count("equivalent") for found in zip(*both, strict=True))
    assert by_steps >= 24 and by_sums <= 6


def test_interrupted_steps_do_not_move_their_block():
    base = np.full(19, 0.02)
    own = base * 1.03
    own[[2, 7, 11]] *= 50
    base[4] *= 9
    assert statistics.of_steps(own, base) == pytest.approx(math.log(1.03))
    with pytest.raises(ValueError, match="19 steps against 18"):
        statistics.of_steps(own, base[1:])


def turned(settings, ratios, blocks=8):
    """A result in turns with invented times: {condition: ratio to the base}; the whole picture's ratio is nearer to 1 by a half."""
    made, samples = invented(settings, {"base": [1.0]}), []
    for block in range(blocks):
        for place, (name, ratio) in enumerate(ratios.items()):
            speed = 1 + 0.1 * block + 0.05 * place
            base = replace(made.samples[0], block=block, place=place, rival=name, seconds=speed, cpu=speed)
            steps = tuple(speed * (0.05 + 0.001 * i) for i in range(4))
            own = tuple(step * ratio * (1 + 0.001 * (block % 3 - 1)) for step in steps)
            samples.append(replace(base, turns=steps, turns_cpu=steps))
            whole = {"seconds": speed * (1 + ratio) / 2, "cpu": speed * (1 + ratio) / 2}
            samples.append(replace(base, condition=name, rival="", turns=own, turns_cpu=own, **whole))
    return replace(made, samples=tuple(samples))


RATIOS = {"base again": 1.0, "stacked": 1.1, "diffusers": 1.4, "PEFT": 1.5}


def test_conditions_are_compared_by_way_of_the_base_that_stood_beside_each(settings):
    analysis = result.analyse(turned(settings, RATIOS))
    assert analysis is not None and [row.samples for row in analysis.rows] == [8] * 5 and analysis.control
    rows, pairs = {row.condition: row for row in analysis.rows}, {(pair.condition, pair.against): pair for pair in analysis.pairs}
    assert rows["stacked"].turns.ratio == pytest.approx(1.1, rel=2e-3) and rows["stacked"].comparison.ratio == pytest.approx(1.05)
    assert rows["base again"].turns.verdict == "equivalent" and rows["base"].turns is None
    assert pairs["base", "diffusers"].turns.ratio == pytest.approx(1 / 1.4, rel=2e-3)
    assert pairs["stacked", "PEFT"].turns.ratio == pytest.approx(1.1 / 1.5) == pairs["stacked", "PEFT"].turns_processor.ratio
    assert pairs["stacked", "PEFT"].comparison.ratio == pytest.approx(1.05 / 1.25)


def test_a_block_in_which_a_condition_did_not_come_to_its_turn_takes_no_part(settings):
    made = turned(settings, RATIOS, blocks=3)
    analysis = result.analyse(replace(made, samples=made.samples[:-1]))
    assert analysis is not None and {row.samples for row in analysis.rows} == {2}


def test_a_limit_is_held_against_the_step_and_against_the_picture(settings):
    named = {"limits": {"stacked": 1.07, "base / diffusers": 0.77}}
    analysis = result.analyse(turned(settings.model_copy(update=named), RATIOS))
    assert {goal.name: goal.outcome for goal in analysis.goals} == {
        "stacked, a step": "missed",
        "stacked, a picture": "met",
        "base / diffusers, a step": "met",
        "base / diffusers, a picture": "missed",
    }


def test_report_page_and_plot_tell_of_steps_and_of_what_they_do_not_measure(settings, tmp_path):
    made = turned(settings, RATIOS)
    text = report.markdown(made)
    lines = text.partition("## Step by step, in turns")[2].splitlines()
    assert any(line.startswith("| stacked | base |") and "1.100" in line and "slower" in line for line in lines)
    assert any(line.startswith("| stacked | PEFT |") for line in lines)
    assert "evict each other" in text and "step by step) covers 1, as it must, and is within the margin" in text
    result.write(made, tmp_path / "b.json")
    outcome = benchmark.analyse(tmp_path / "b.json")
    assert "<h2>Step by step, in turns</h2>" in outcome.html.read_text(encoding="utf-8")
    assert outcome.markdown.read_text(encoding="utf-8") == text
    assert plot.points(made, "stacked") == pytest.approx([1.1 * (1 + 0.001 * (block % 3 - 1)) for block in range(8)])
    alone = invented(settings.model_copy(update={"pairing": "pictures"}), {"base": [1.0, 1.1], "stacked": [1.2, 1.3]})
    assert "Step by step" not in report.markdown(alone) and "evict" not in report.markdown(alone)


def test_a_result_in_turns_comes_back_from_json_and_an_earlier_file_is_one_of_pictures(settings, tmp_path):
    made = turned(settings, RATIOS)
    result.write(made, tmp_path / "b.json")
    assert replace(result.read(tmp_path / "b.json"), config=settings) == made
    old = invented(settings, {"base": [1.0, 1.1], "stacked": [1.2, 1.3]})
    result.write(old, tmp_path / "old.json")
    content = json.loads((tmp_path / "old.json").read_text())
    del content["config"]["pairing"], content["config"]["checked"]
    for sample in content["samples"]:
        for name in ("rival", "turns", "turns_cpu"):
            del sample[name]
    (tmp_path / "old.json").write_text(json.dumps(content))
    again = result.read(tmp_path / "old.json")
    assert again.config.pairing == "pictures" and again.samples == old.samples and result.analyse(again).rows[1].turns is None


def test_every_condition_has_a_colour_of_its_own():
    assert len(set(plot.COLOURS)) == len(plot.COLOURS) >= len(CONDITIONS)


def test_check_holds_turns_against_turns_alone(settings, tmp_path):
    for name, ratio in (("recorded", 1.1), ("slower", 1.3)):
        result.write(turned(settings, RATIOS | {"stacked": ratio}), tmp_path / name)
    found = {one.name: one.outcome for one in compared.compare(tmp_path / "slower", tmp_path / "recorded")}
    assert found["stacked / PEFT, a step"] == found["stacked / PEFT, a picture"] == "worse"
    assert found["base / diffusers, a step"] == "as recorded"
    pictures = settings.model_copy(update={"pairing": "pictures"})
    result.write(invented(pictures, {"base": [1.0, 1.1], "diffusers": [1.4, 1.5]}), tmp_path / "pictures")
    with pytest.raises(SdloraError, match="in common"):
        compared.compare(tmp_path / "pictures", tmp_path / "recorded")


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
