"""The training benchmark: the plain loop trains as ours does, and what was measured comes back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import pictures

from sdlora import cli, config
from sdlora.benchmark import compared, training
from sdlora.benchmark.environment import record
from sdlora.benchmark.gate import Check
from sdlora.benchmark.training import TrainingBenchmarkConfig, contenders, report, result
from sdlora.benchmark.training.config import CACHED, CONTROL, OURS, PLAIN
from sdlora.benchmark.training.peak import Peak
from sdlora.benchmark.training.run import same_losses
from sdlora.benchmark.work import Counter, Work
from sdlora.errors import SdloraError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(tiny_base, tmp_path):
    captions = ["a cat face, flat emoji" if i % 2 else "a dog, 3d emoji" for i in range(5)]
    folder = pictures(tmp_path / "pictures", ((64, 70),) * 5, captions)
    own = {"base": str(tiny_base), "images": folder, "plain": ROOT / "train" / "plain_loop.py", "output": tmp_path / "out"}
    return TrainingBenchmarkConfig(**own, batch_size=2, rank=2, resolution=64, learning_rate=1e-2, blocks=2, steps=1, resamples=200)


def invented(settings, seconds: dict[str, list[float]]) -> result.Result:
    """A result with given times: {contender: [seconds of block 0, 1, …]}."""
    samples = [
        result.Sample(block, place, name, times[block], times[block], (0.5,), 0.5)
        for place, (name, times) in enumerate(seconds.items())
        for block in range(len(times))
    ]
    peaks = tuple(Peak(name, 2**20 * (100 + i), 2**20 * 200) for i, name in enumerate(seconds))
    work = tuple(Work(name, 10**9 * (1 + i), 10**6) for i, name in enumerate(seconds))
    checks, chosen = (Check("the losses agree", "1e-7", True),), settings.model_copy(update={"contenders": tuple(seconds), "steps": 2})
    return result.Result(chosen, record(torch.device("cpu")), checks, 99, work, peaks, tuple(samples), True)


@pytest.mark.parametrize("name", [PLAIN, CACHED])
def test_the_plain_loop_has_our_losses_step_by_step_while_both_learn(name, settings):
    pytest.importorskip("peft")
    losses = {}
    for contender in (OURS, name):
        with contenders.ready(contender, settings) as go:
            losses[contender] = [*go(2), *go(3)]
    assert losses[name] == pytest.approx(losses[OURS], rel=1e-5)
    with contenders.ready(OURS, settings.model_copy(update={"learning_rate": 1e-9})) as go:
        still = go(5)
    assert still[0] == pytest.approx(losses[OURS][0], rel=1e-6)  # B is zero
    assert np.max(np.abs(np.array(still) / np.array(losses[OURS]) - 1)) > 1e-4  # so that agreement says something about the updates


def test_other_losses_are_refused_before_any_time_is_taken(settings):
    good, bad = same_losses({OURS: [0.5, 0.4], PLAIN: [0.5, 0.4], CACHED: [0.5, 0.40001]}, settings)
    assert good.passed and not bad.passed
    assert same_losses({OURS: [0.5], PLAIN: [0.501]}, settings.model_copy(update={"precision": "bf16"}))[0].passed


def test_the_arithmetic_of_a_step_is_that_of_its_products():
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    with Counter() as counter:
        torch.nn.functional.linear(x, w).sum().backward()
    assert counter.flops == 3 * (2 * 3 * 4 * 5)  # forwards, and the gradients of x and w
    q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (6, 7, 7))
    with Counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert counter.flops == 2 * 2 * 2 * 6 * 7 * 8
    out = torch.zeros(3, 5)
    with torch.inference_mode(), Counter() as counter:
        out.addmm_(x, w.t())
    assert counter.flops == 2 * 3 * 4 * 5 and counter.bytes == 4 * (3 * 5 + 3 * 4 + 5 * 4)


def test_a_result_comes_back_from_json_with_its_analysis_and_the_report_says_it(settings, tmp_path):
    base = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 0.98]
    made = invented(
        settings, {OURS: base, CONTROL: [t * 1.001 for t in base], PLAIN: [2 * t * (1 + 0.01 * (i % 2)) for i, t in enumerate(base)]}
    )
    result.write(made, tmp_path / "b.json")
    again = result.read(tmp_path / "b.json")
    assert again == made and result.analyse(again) == result.analyse(made)
    analysis = result.analyse(made)
    assert analysis is not None
    pair = next(p for p in analysis.pairs if (p.contender, p.against) == (OURS, PLAIN))
    assert pair.comparison.ratio == pytest.approx(1 / (2 * 1.01**0.5)) and pair.comparison.verdict == "faster"
    assert [(goal.name, goal.outcome) for goal in analysis.goals] == [(f"{OURS} / {PLAIN}", "met")]
    text = report.markdown(made)
    assert f"| {OURS} | 500.0 | 4.00 |" in text
    assert "2.01" in text and "met" in text and "2.000" in text  # times as fast; goal; arithmetic
    assert "<table>" in report.page(made, None)


def test_a_block_that_was_cut_off_takes_no_part(settings):
    analysis = result.analyse(invented(settings, {OURS: [1.0, 1.1, 0.9], PLAIN: [1.2, 1.3]}))
    assert analysis is not None and analysis.pairs[0].comparison.pairs == 2
    assert result.analyse(invented(settings, {OURS: [1.0], PLAIN: [1.2]})) is None


def test_analyse_and_check_know_the_training_benchmark(settings, tmp_path, capsys):
    base = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95]
    for name, factor in (("old", 2.0), ("same", 1.99), ("slow", 1.2)):
        jitter = [1 + 0.01 * (i % 3) for i in range(len(base))]
        plain = [factor * t * j for t, j in zip(base, jitter, strict=True)]
        result.write(invented(settings, {OURS: base, PLAIN: plain}), tmp_path / f"{name}.json")
    assert cli.main(["benchmark", "analyse", str(tmp_path / "old.json")]) == 0
    assert (tmp_path / "old.html").is_file() and (tmp_path / "old.png").is_file()
    assert cli.main(["benchmark", "check", str(tmp_path / "same.json"), str(tmp_path / "old.json")]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("as recorded  0.") and said.endswith(f":  {OURS} / {PLAIN}")
    assert cli.main(["benchmark", "check", str(tmp_path / "slow.json"), str(tmp_path / "old.json")]) == 1
    assert "worse" in capsys.readouterr().err
    assert compared.compare(tmp_path / "old.json", tmp_path / "slow.json")[0].better


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("contenders=['sdlora']", "two or more"),
        ("contenders=['sdlroa', 'sdlora']", "did you mean sdlora"),
        ("limits={'sdlora / diffuser' = 1.0}", "not measured; did you mean"),
        ("limits={'diffusers + PEFT / sdlora' = 1.0}", "not measured"),
        ("stpes=3", "did you mean steps"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(change, words):
    with pytest.raises(SdloraError, match=words):
        config.load(TrainingBenchmarkConfig, ROOT / "configs" / "benchmark-training.toml", [change])


def test_the_settings_file_has_the_defaults():
    path = ROOT / "configs" / "benchmark-training.toml"
    written = config.load(TrainingBenchmarkConfig, path)
    own = {"images": written.images, "plain": written.plain, "output": written.output}
    assert written == TrainingBenchmarkConfig(**own) and written.plain.is_file() and written.images.is_dir()


def test_without_its_script_or_peft_the_reference_is_refused(settings, monkeypatch):
    with pytest.raises(SdloraError, match="train/plain_loop.py of the repository"):
        contenders.script(Path("nowhere.py"))
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    with pytest.raises(SdloraError, match="needs the package peft"):
        contenders.script(settings.plain)


@pytest.mark.slow
def test_a_training_benchmark_runs_from_end_to_end_and_memory_is_taken_in_processes_of_their_own(settings):
    pytest.importorskip("peft")
    seen = []
    outcome = training.run(settings, lambda done, total, words: seen.append((done, words)))
    assert seen[-1] == (2, "measuring") and outcome.result.complete and outcome.analysis is not None
    assert {row.contender for row in outcome.analysis.rows} == {OURS, CONTROL, PLAIN, CACHED}
    assert all(peak.host is None or peak.host > 2**27 for peak in outcome.result.peaks)
    work = {one.condition: one.flops for one in outcome.result.work}
    assert work[PLAIN] > work[CACHED] >= work[OURS] > 0
    assert json.loads(outcome.json.read_text())["format"] == training.FORMAT and outcome.html.is_file()
