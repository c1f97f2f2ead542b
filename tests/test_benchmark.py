"""The benchmark from gate to report, on a tiny random base: what it refuses, what it keeps, what it writes."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdlora import apply, benchmark, cli, config, files
from sdlora.adapter import Adapter
from sdlora.benchmark import BenchmarkConfig, adapters, gate, measure, memory, plan, plot, report, result
from sdlora.benchmark.conditions import CONDITIONS, active
from sdlora.benchmark.environment import record
from sdlora.errors import SdloraError
from sdlora.generation import Request

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def adapter(components):
    return adapters.obtain("random:rank=4", components)


@pytest.fixture
def settings(tiny_base, tmp_path):
    small = {"base": str(tiny_base), "adapter": "random:rank=4", "prompts": ("a cat face",), "steps": 2, "warmup": 1}
    return BenchmarkConfig(**small, blocks=3, repeats=2, resamples=200, output=tmp_path / "out")


def invented(settings, seconds, samples=None) -> result.Result:
    """A result with given times: {condition: [seconds of block 0, 1, …]}."""
    made = [
        measure.Sample(block, place, name, "a cat", 1, times[block], 0.5, "00")
        for place, (name, times) in enumerate(seconds.items())
        for block in range(len(times))
    ]
    peaks = tuple(memory.Memory(name, 2**20 * (100 + i)) for i, name in enumerate(seconds))
    handling = (measure.Handling("load the file", (0.001, 0.003)),)
    subject = result.Subject("random:rank=4", 2, 100, 400)
    checks = (gate.Check("the adapter changes the image", "7 of 255 levels", True),)
    return result.Result(settings, record(torch.device("cpu")), subject, checks, handling, peaks, tuple(made), True)


def draw(components):
    return measure.draw(components, [Request("a cat face", seed=1, steps=2)])[0]


# The gate


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


def test_nothing_is_timed_or_written_when_the_gate_fails(settings, components, monkeypatch):
    monkeypatch.setattr(adapters, "SHARE", 0.0)
    with pytest.raises(SdloraError, match="gate failed"):
        benchmark.run(settings, components)
    assert not list(settings.output.iterdir())


def test_a_base_that_changed_while_it_was_measured_fails_at_the_end(settings, components, monkeypatch):
    monkeypatch.setattr(plan, "blocks", lambda *arguments: [])
    prints = iter(["before", "before", "before", "after"])
    monkeypatch.setattr(gate, "fingerprint", lambda components: next(prints))
    with pytest.raises(SdloraError, match="after all samples every tensor is the base's"):
        benchmark.run(settings, components)
    assert not (settings.output / "benchmark.md").exists()


# The adapter under test


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


# Settings


def test_the_settings_file_is_the_default():
    written = config.load(BenchmarkConfig, ROOT / "configs" / "benchmark-emoji.toml")
    assert written == BenchmarkConfig(output=ROOT / "runs" / "benchmark-emoji")


@pytest.mark.parametrize(("change", "words"), [("blokcs=3", "did you mean blocks"), ("blocks=1", "blocks is 1"), ("margin=-1", "margin")])
def test_a_wrong_setting_is_named(change, words):
    with pytest.raises(SdloraError, match=words):
        config.load(BenchmarkConfig, None, [change])


# Result and report


def test_a_result_comes_back_from_json_and_its_analysis_with_it(settings, tmp_path):
    made = invented(settings, {"base": [1.0, 1.1, 0.9], "base again": [1.01, 1.09, 0.9], "stacked": [1.2, 1.3, 1.1]})
    result.write(made, tmp_path / "b.json")
    again = result.read(tmp_path / "b.json")
    assert replace(again, config=settings) == made
    assert result.analyse(again) == result.analyse(made)
    stored = json.loads((tmp_path / "b.json").read_text())["analysis"]["rows"][2]["comparison"]["ratio"]
    assert stored == pytest.approx(math.prod([1.2, 1.3 / 1.1, 1.1 / 0.9]) ** (1 / 3))


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other/1"}', "[1]"])
def test_a_file_that_is_no_benchmark_is_refused(text, tmp_path):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(SdloraError, match="b.json"):
        result.read(tmp_path / "b.json")


def test_a_block_that_was_cut_off_takes_no_part(settings):
    made = invented(settings, {"base": [1.0, 1.1, 0.9], "stacked": [1.2, 1.3]})
    analysis = result.analyse(made)
    assert analysis is not None and [row.samples for row in analysis.rows] == [2, 2]
    assert result.analyse(invented(settings, {"base": [1.0], "stacked": [1.2]})) is None


def test_the_report_says_ratio_interval_verdict_and_memory(settings):
    base = [1.0 + 0.1 * (i % 3) for i in range(12)]
    slow = [t * (1.2 + 0.002 * (i % 5)) for i, t in enumerate(base)]
    made = invented(settings, {"base": base, "base again": [t * (1 + 0.001 * (i % 2)) for i, t in enumerate(base)], "stacked": slow})
    text = report.markdown(made)
    row = next(line for line in text.splitlines() if line.startswith("| stacked"))
    assert "1.203" in row and "slower" in row and "+2.0" in row
    assert "equivalent" in next(line for line in text.splitlines() if line.startswith("| base again"))


def test_a_control_that_differs_from_the_base_is_pointed_out(settings):
    base = [1.0 + 0.001 * i for i in range(10)]
    made = invented(settings, {"base": base, "base again": [t * (1.1 + 0.001 * (i % 2)) for i, t in enumerate(base)]})
    assert "too noisy" in report.markdown(made)


def test_times_are_written_in_the_unit_in_which_they_read_best():
    assert [report.duration(t) for t in (2.5, 0.0123, 0.0000456)] == ["2.5 s", "12.3 ms", "45.6 µs"]


def test_the_plot_is_a_picture(settings, tmp_path):
    from PIL import Image

    made = invented(settings, {"base": [1.0, 1.1, 0.9], "base again": [1.01, 1.09, 0.9], "stacked": [1.2, 1.3, 1.1]})
    analysis = result.analyse(made)
    assert analysis is not None
    plot.save(made, analysis, tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").width > 1000


# Measuring


def test_every_condition_is_active_while_it_lasts_and_gone_afterwards(components, adapter):
    before = gate.fingerprint(components)
    base = gate.image_hash(draw(components))
    for name in CONDITIONS:
        with active(components, name, [(adapter, 1.0)]):
            assert (gate.image_hash(draw(components)) == base) == name.startswith("base"), name
    assert gate.fingerprint(components) == before


def test_a_peak_of_memory_is_seen_and_forgotten():
    device = torch.device("cpu")
    memory.release()
    if not memory.reset(device):
        pytest.skip("this system keeps no peak that can be reset")
    start = memory.peak(device)
    big = torch.ones(16 * 2**20)  # 64 MiB
    high = memory.peak(device)
    del big
    memory.release()
    memory.reset(device)
    assert high - start > 60 * 2**20 > memory.peak(device) - start


def test_a_benchmark_runs_from_end_to_end(settings, components):
    seen = []
    before = gate.fingerprint(components)
    outcome = benchmark.run(settings, components, lambda done, total, words: seen.append((done, total)))
    assert seen[-1] == (3, 3) and outcome.result.complete and gate.fingerprint(components) == before
    assert {path.name for path in settings.output.iterdir()} == {"benchmark.json", "benchmark.md", "benchmark.png"}
    again = result.read(outcome.json)
    assert len(again.samples) == 12 and all(sample.seconds > 0 for sample in again.samples)
    assert [row.condition for row in outcome.analysis.rows] == list(CONDITIONS)
    images = {s.condition: s.image for s in again.samples if s.prompt == "a cat face" and s.seed == 1}
    assert images["base"] == images["base again"] != images["stacked"]
    assert {one.operation for one in again.handling} >= {
        "load the file",
        "put on, stacked",
        "change the strength, stacked",
        "put on, fused",
    }


def test_what_was_measured_before_an_interruption_is_kept(settings, components, monkeypatch):
    calls, original = [], measure.block_samples

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(measure, "block_samples", interrupted)
    outcome = benchmark.run(settings, components)
    assert not outcome.result.complete and len(result.read(outcome.json).samples) == 8
    assert "Interrupted: 2 of 3 blocks" in outcome.markdown.read_text() and outcome.plot is not None


def test_the_command_measures_and_says_where_the_files_are(settings, capsys):
    changes = ["adapter=random:rank=2", "prompts=['a cat']", "steps=1", "warmup=1", "blocks=2", "repeats=2", "resamples=200"]
    assert cli.main(["benchmark", f"base={settings.base}", f"output={settings.output}", *changes]) == 0
    out = capsys.readouterr().out
    assert "stacked" in out and "benchmark.json" in out and (settings.output / "benchmark.md").is_file()


def test_the_command_refuses_an_unknown_setting_in_one_line(capsys):
    assert cli.main(["benchmark", "blokcs=3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown setting blokcs")
