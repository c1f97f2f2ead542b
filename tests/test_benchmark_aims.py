"""What the settings aim at: in ratios and in seconds, of drawings, operations and whole commands; and why something is not met."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import invented, small

from sdlora import config
from sdlora.benchmark import BenchmarkConfig, commands, html, limits, report, result, work
from sdlora.benchmark.handling import Handling
from sdlora.benchmark.names import CHANGE, FIRST, HELP, LATE, READY, THEIRS
from sdlora.benchmark.training import TrainingBenchmarkConfig
from sdlora.benchmark.training import result as trained
from sdlora.benchmark.training.config import OURS, PLAIN
from sdlora.benchmark.training.peak import Peak
from sdlora.errors import SdloraError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(tiny_base, tmp_path):
    return small(tiny_base, tmp_path / "out")


def aiming(settings, **aims):
    """A result of twelve blocks in which stacked takes 1.2 times as long as the base, and stock diffusers 1.3 times."""
    base = [1.0 + 0.01 * i for i in range(12)]
    made = invented(settings, {"base": base, "stacked": [1.2 * t for t in base], "diffusers": [1.3 * t for t in base]})
    operations = {READY: (0.02, 0.021), LATE: (0.03, 0.031), THEIRS: (0.1, 0.11), "read the file": (0.005,) * 2, CHANGE: (5e-4, 1.5e-3)}
    counts = (work.Work("base", 10**9, 10**8), work.Work("stacked", 102 * 10**7, 105 * 10**6))
    handled = tuple(Handling(name, seconds) for name, seconds in operations.items())
    return replace(made, handling=handled, work=counts, config=settings.model_copy(update={"seconds": {}, "limits": {}} | aims))


def test_an_operation_is_held_against_its_seconds_by_all_its_repeats(settings):
    for limit, outcome in ((0.002, "met"), (0.001, "open"), (0.0004, "missed")):
        made = aiming(settings, seconds={CHANGE: limit})
        (found,) = result.analyse(made).ceilings
        assert (found.outcome, found.median) == (outcome, pytest.approx(0.001))
    assert f"| {CHANGE} | at most 400 µs | 1 ms | 500 µs … 1.5 ms | missed by 150.0 % |" in report.markdown(made)
    assert "missed by 150.0 %" in html.page(made, result.analyse(made), settings.output, None)


def test_a_time_that_an_earlier_run_did_not_aim_at_is_not_said_of_it(settings, tmp_path):
    result.write(aiming(settings, seconds={CHANGE: 1.0}), tmp_path / "b.json")
    content = json.loads((tmp_path / "b.json").read_text())
    del content["config"]["seconds"]
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert result.analyse(result.read(tmp_path / "b.json")).ceilings == ()


def test_of_what_is_missed_the_report_says_where_the_time_goes_and_what_the_limit_is(settings):
    made = aiming(settings, limits={"stacked": 1.1, "base / diffusers": 0.5, f"{READY} / {THEIRS}": 0.1, f"{LATE} / {READY}": 2.0})
    found = dict(line.split(": ", 1) for line in limits.lines(made, result.analyse(made)))
    assert list(found) == ["stacked", "base / diffusers", f"{READY} / {THEIRS}"]  # the fourth is met
    assert "floating-point operations is 1.020, by the bytes that its operations move 1.050" in found["stacked"]
    assert "its 1.02 GFLOP and 105 MB come to 4.08 GFLOP/s and 0.42 GB/s" in found["stacked"]  # in a step of 250 ms
    assert "its 1 GFLOP" in found["base / diffusers"] and "limit by its" not in found["base / diffusers"]  # theirs are not counted
    assert "read the file 5 ms" in found[f"{READY} / {THEIRS}"]
    for text in (report.markdown(made), html.page(made, result.analyse(made), settings.output, None)):
        assert "Where the time of what is not met goes" in text and found["stacked"] in text
    met = aiming(settings, limits={"stacked": 1.3})
    assert not list(limits.lines(met, result.analyse(met))) and "not met goes" not in report.markdown(met)


def test_whole_commands_are_timed_where_they_are_aimed_at_and_only_there(settings, monkeypatch):
    called = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: called.append(command[3:]) or subprocess.CompletedProcess(command, 0, "", "")
    )
    assert commands.measure(settings) == () and called == []
    found = commands.measure(settings.model_copy(update={"seconds": {HELP: 0.3, FIRST: 6.0}, "width": 64}))
    assert [(one.operation, len(one.seconds)) for one in found] == [(HELP, commands.TIMES), (FIRST, commands.TIMES)]
    assert called[0] == ["--help"] and called[1][:2] == ["generate", "a cat face"] and "--width=64" in called[1]
    tagged = settings.model_copy(update={"prompts": ("a cat face <lora:first:1>",)})  # the benchmark's words, and no command's file
    assert commands.first(tagged, settings.output)[:2] == ["generate", "a cat face"]
    made = settings.model_copy(update={"seconds": {FIRST: 6.0}, "base": "random:sd1"})
    assert commands.measure(made) == ()


def test_the_commands_that_are_timed_are_the_products_own(settings):
    asked = settings.model_copy(update={"threads": 1})
    assert commands.seconds(["--help"], asked) > 0
    with pytest.raises(SdloraError, match="`sdlora generate`, which was to be timed, failed: error: .*nowhere"):
        commands.seconds(commands.first(asked.model_copy(update={"base": "/nowhere"}), settings.output), asked)


def test_memory_is_held_against_memory_where_the_system_tells_of_both():
    limits = {f"{OURS} / {PLAIN}": 1.0}
    for mine, outcome in ((500, "missed by 25.0 %"), (400, "met")):
        (found,) = trained.memory_goals(limits, {OURS: Peak(OURS, mine, 1), PLAIN: Peak(PLAIN, 400, 1)})
        assert (found.ratio, found.outcome) == (mine / 400, outcome)
    for peaks in ({OURS: Peak(OURS, 1, 1)}, {OURS: Peak(OURS, None, None), PLAIN: Peak(PLAIN, 400, 1)}):
        assert not list(trained.memory_goals(limits, peaks))


def test_seconds_for_what_is_no_operation_are_refused_with_the_nearest():
    with pytest.raises(SdloraError, match="seconds names 'sdlora --hlep', which is not measured; did you mean sdlora --help"):
        config.load(BenchmarkConfig, None, ["seconds={'sdlora --hlep' = 0.3}"])


def test_every_target_of_speed_stands_in_a_settings_file():
    """Those of issue 6: of drawing and handling, and training's."""
    training = config.load(TrainingBenchmarkConfig, ROOT / "configs" / "benchmark-training.toml")
    assert training.limits[f"{OURS} / {PLAIN}"] == 0.667 and training.memory == {f"{OURS} / {PLAIN}": 1.0}
    read = {
        name: config.load(BenchmarkConfig, ROOT / "configs" / f"benchmark-{name}.toml")
        for name in ("emoji", "sd15-random", "sd15-compiled", "batch")
    }
    emoji, full = read["emoji"], read["sd15-random"]
    assert emoji.margins["fused"] == full.margins["fused"] == 0.01 and emoji.limits["fused"] == full.limits["fused"] == 1.01
    assert (emoji.limits["stacked"], emoji.limits["stacked 8"], emoji.limits["base / diffusers"]) == (1.10, 1.25, 0.77)
    assert (full.limits["stacked"], full.limits["stacked 8"], full.limits["base / diffusers"]) == (1.02, 1.04, 1.0)
    assert emoji.limits[f"{READY} / {THEIRS}"] == full.limits[f"{READY} / {THEIRS}"] == 0.1
    assert emoji.seconds[CHANGE] == full.seconds[CHANGE] == 0.001 and (emoji.seconds[HELP], emoji.seconds[FIRST]) == (0.3, 6)
    assert read["batch"].limits["own 8 / stacked"] == 1.1 and read["sd15-compiled"].limits["compiled / diffusers"] == 1.0
    assert full.pairing == emoji.pairing == "steps" and full.steps >= 10
