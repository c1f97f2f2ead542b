"""The benchmark from its settings to its files, on a tiny random base: what it refuses, what it keeps, what it writes."""

from pathlib import Path

import pytest
from benchmarks import OURS, small

from sdlora import benchmark, cli, config
from sdlora.benchmark import BenchmarkConfig, adapters, gate, handling, measure, plan, result
from sdlora.benchmark.conditions import CONDITIONS
from sdlora.benchmark.run import chosen
from sdlora.errors import SdloraError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(tiny_base, tmp_path):
    return small(tiny_base, tmp_path / "out")


@pytest.fixture
def pair(settings):
    """Of two conditions alone, in half the time."""
    return settings.model_copy(update={"conditions": ("base", "stacked")})


def test_nothing_is_timed_or_written_when_the_gate_fails(settings, components, monkeypatch):
    monkeypatch.setattr(adapters, "SHARE", 0.0)
    with pytest.raises(SdloraError, match="gate failed"):
        benchmark.run(settings, components)
    assert not list(settings.output.iterdir())


def test_a_base_that_changed_while_it_was_measured_fails_at_the_end(pair, components, monkeypatch):
    monkeypatch.setattr(plan, "blocks", lambda *arguments: [])
    prints = iter(["before", "before", "before", "after"])
    monkeypatch.setattr(gate, "fingerprint", lambda components: next(prints))
    with pytest.raises(SdloraError, match="after all samples every tensor is the base's"):
        benchmark.run(pair, components)
    assert not (pair.output / "benchmark.md").exists()


def test_the_settings_file_is_the_default():
    written = config.load(BenchmarkConfig, ROOT / "configs" / "benchmark-emoji.toml")
    assert written == BenchmarkConfig(output=ROOT / "runs" / "benchmark-emoji")


@pytest.mark.parametrize(("change", "words"), [("blokcs=3", "did you mean blocks"), ("blocks=1", "blocks is 1"), ("margin=-1", "margin")])
def test_a_wrong_setting_is_named(change, words):
    with pytest.raises(SdloraError, match=words):
        config.load(BenchmarkConfig, None, [change])


def test_a_benchmark_runs_from_end_to_end(settings, components):
    seen = []
    before = gate.fingerprint(components)
    outcome = benchmark.run(settings, components, lambda done, total, words: seen.append((done, total)))
    assert seen[-1] == (3, 3) and outcome.result.complete and gate.fingerprint(components) == before
    assert {path.name for path in settings.output.iterdir()} == {
        "benchmark.json",
        "benchmark.md",
        "benchmark.html",
        "benchmark.png",
        "images",
    }
    again = result.read(outcome.json)
    assert len(again.samples) == 12 and all(sample.seconds > 0 for sample in again.samples)
    assert {row.condition for row in outcome.analysis.rows} == set(OURS)
    images = {s.condition: s.image for s in again.samples if s.prompt == "a cat face" and s.seed == 1}
    assert images["base"] == images["base again"] != images["stacked"]
    assert {one.operation for one in again.handling} >= {
        "read and map",
        "put on, stacked",
        "change the strength, stacked",
        "put on, fused",
    }


def test_what_was_measured_before_an_interruption_is_kept(pair, components, monkeypatch):
    calls, original = [], measure.timed

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:  # in the third block
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(measure, "timed", interrupted)
    outcome = benchmark.run(pair, components)
    assert not outcome.result.complete and len(result.read(outcome.json).samples) == 4
    assert "Interrupted: 2 of 3 blocks" in outcome.markdown.read_text() and outcome.plot is not None


def test_the_command_measures_and_says_where_the_files_are(settings, capsys):
    changes = [
        "adapter=random:rank=2",
        "prompts=['a cat']",
        "steps=1",
        "pairing=pictures",
        "seconds={}",
        "warmup=1",
        "blocks=2",
        "rounds=1",
        "repeats=2",
        "resamples=200",
        "conditions=['stacked']",
    ]
    assert cli.main(["benchmark", f"base={settings.base}", f"output={settings.output}", *changes]) == 0
    out = capsys.readouterr().out
    assert "stacked" in out and "benchmark.json" in out and (settings.output / "benchmark.md").is_file()


def test_blocks_by_prompt_follow_the_runs_that_are_given():
    planned = plan.blocks(99, ["a", "b"], [1, 2], ("x", "y"), 0, runs=(3, 1))
    assert [(block.index, block.prompt, block.seed) for block in planned] == [(0, "a", 1), (1, "a", 2), (2, "a", 1), (3, "b", 1)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["runs=[1, 2]"], "runs has 2 entries for 4 prompts"),
        (["adapters=['random']"], "adapters has 1 entries for 4 prompts"),
        (["request={sampelr = 'Euler a'}"], "request.sampelr"),
        (["request={steps = 3}"], "outside .request."),
        (["conditions=['stakced']"], "did you mean stacked"),
        (["prompts=['a cat <lora:x:0.5>']"], "asks for η = 0.5"),
    ],
)
def test_a_setting_without_effect_or_sense_is_refused_before_anything_is_loaded(change, words, tmp_path):
    chosen = None
    with pytest.raises(SdloraError, match=words):
        chosen = config.load(BenchmarkConfig, None, [*change, "base=/nowhere", f"output={tmp_path}"])
        benchmark.run(chosen)


def test_tags_of_adapters_are_taken_out_of_a_prompt():
    settings = BenchmarkConfig(prompts=("a cat face, <lora:Goku_Pony_XL:1>",), images=3, request={"negative": "a dog"})
    wanted = measure.requests(settings, settings.prompts[0], 7)
    assert [(r.prompt, r.seed, r.negative) for r in wanted] == [("a cat face", seed, "a dog") for seed in (7, 8, 9)]


@pytest.mark.parametrize("name", ["table2", "table2-emoji"])
def test_the_published_setting_is_written_down_to_the_letter(name):
    chosen = config.load(BenchmarkConfig, ROOT / "configs" / f"benchmark-{name}.toml")
    assert (chosen.images, chosen.batch, chosen.runs, chosen.steps, chosen.seeds) == (12, 1, (10, 1), 20, (536003248,))
    assert chosen.guidance == 7 and chosen.planned == 11


@pytest.mark.slow
def test_stock_diffusers_with_peft_draws_the_same_pictures_and_is_measured_beside_ours(settings):
    pytest.importorskip("peft")
    names = ("stacked", "stacked 2", "fused", "diffusers", "PEFT", "PEFT fused")
    outcome = benchmark.run(settings.model_copy(update={"conditions": names, "blocks": 2}))
    assert {(p.condition, p.against) for p in outcome.analysis.pairs} >= {
        ("base", "diffusers"),
        ("stacked", "PEFT"),
        ("fused", "PEFT fused"),
    }
    assert {one.operation for one in outcome.result.handling} >= {handling.THEIRS, handling.LATE, handling.THEIRS_LATE}
    assert any(check.law.startswith("PEFT fused draws what it should") for check in outcome.result.gate)


def test_peft_is_asked_for_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("sdlora.benchmark.conditions.find_spec", lambda name: None)
    assert not any(name.startswith("PEFT") for name in chosen(BenchmarkConfig()))
    with pytest.raises(SdloraError, match="need the package peft"):
        chosen(BenchmarkConfig(conditions=("PEFT",)))


def test_the_command_refuses_an_unknown_setting_in_one_line(capsys):
    assert cli.main(["benchmark", "blokcs=3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown setting blokcs")


@pytest.mark.parametrize(
    ("change", "words"), [("base=random:sd9", "unknown family 'sd9'"), ("vae=x.safetensors", "a random VAE of its own")]
)
def test_a_random_base_that_cannot_be_is_refused(change, words, tmp_path):
    wanted = config.load(BenchmarkConfig, None, ["base=random:sd1", f"output={tmp_path}", change])
    with pytest.raises(SdloraError, match=words):
        benchmark.run(wanted)


def test_the_reference_refuses_what_it_cannot_draw_before_anything_is_loaded(tmp_path):
    changes = ["base=/nowhere", "request={sampler = 'Euler a'}", "conditions=['diffusers']", f"output={tmp_path}"]
    with pytest.raises(SdloraError, match="sampler Euler alone, and not with sampler = 'Euler a'"):
        benchmark.run(config.load(BenchmarkConfig, None, changes))


def test_a_single_step_which_diffusers_begins_elsewhere_is_refused_for_the_reference(tmp_path):
    with pytest.raises(SdloraError, match="needs steps = 2 or more"):
        benchmark.run(BenchmarkConfig(base="/nowhere", steps=1, pairing="pictures", conditions=("diffusers",), output=tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        "limits={'stacked / PFET' = 1.0}",
        "limits={'stacked / diffusers' = 1.0}",  # both are, but never against each other
        "limits={base = 1.0}",
        "margins={'set_adapters (PEFT)' = 0.1}",
        "margins={x = 0.1}",
    ],
)
def test_a_goal_or_margin_for_what_is_not_measured_is_refused(change):
    with pytest.raises(SdloraError, match="which is not measured"):
        config.load(BenchmarkConfig, None, [change])


def test_every_settings_file_of_the_benchmark_is_valid_and_measures_what_it_aims_at():
    for path in sorted((ROOT / "configs").glob("benchmark-*.toml")):
        if path.stem == "benchmark-training":
            continue
        found = config.load(BenchmarkConfig, path)
        names = chosen(found)
        parts = {part for limit in found.limits for part in limit.split(" / ")} & set(CONDITIONS)
        assert parts | set(found.margins) <= set(names), path.name


def test_the_published_setting_without_files_differs_in_the_base_and_the_adapters_alone():
    told, made = (config.load(BenchmarkConfig, ROOT / "configs" / f"benchmark-table2{name}.toml") for name in ("", "-random"))
    differ = {name for name in BenchmarkConfig.model_fields if getattr(told, name) != getattr(made, name)}
    assert differ == {"base", "vae", "adapters", "output"} and made.base == "random:sdxl"
