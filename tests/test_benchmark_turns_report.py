"""What is said of steps that took turns: ratios by way of the base, limits, the report and its files."""

import json
from dataclasses import replace

import pytest
from benchmarks import in_turns, invented

from sdlora import benchmark
from sdlora.benchmark import compared, plot, report, result
from sdlora.benchmark.conditions import CONDITIONS
from sdlora.errors import SdloraError


@pytest.fixture
def settings(tiny_base, tmp_path):
    return in_turns(tiny_base, tmp_path / "out")


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
