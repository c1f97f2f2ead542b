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
from sdlora.benchmark import BenchmarkConfig, adapters, gate, handling, html, measure, memory, plan, plot, report, result, work
from sdlora.benchmark.conditions import CONDITIONS, Subject, active
from sdlora.benchmark.environment import record
from sdlora.benchmark.run import chosen
from sdlora.errors import SdloraError
from sdlora.generation import Request, generate

ROOT = Path(__file__).parents[1]
OURS = ("base", "base again", "stacked", "fused")


@pytest.fixture(scope="module")
def adapter(components):
    return adapters.obtain("random:rank=4", components)


@pytest.fixture
def settings(tiny_base, tmp_path):
    small = {"base": str(tiny_base), "adapter": "random:rank=4", "prompts": ("a cat face",), "steps": 2, "warmup": 1}
    return BenchmarkConfig(**small, conditions=OURS, blocks=3, repeats=2, resamples=200, output=tmp_path / "out")


def invented(settings, seconds, samples=None) -> result.Result:
    """A result with given times: {condition: [seconds of block 0, 1, …]}."""
    made = [
        measure.Sample(block, place, name, "a cat face", 1, times[block], times[block], 0, 0.1, (0.2, 0.3), 0.1, 0, 0.5, 2000.0, "00")
        for place, (name, times) in enumerate(seconds.items())
        for block in range(len(times))
    ]
    peaks = tuple(memory.Memory(name, 2**20 * (100 + i), 2**20 * 200, (1.0, 2.0, 3.0)) for i, name in enumerate(seconds))
    handled = (handling.Handling("read and map", (0.001, 0.003)),)
    facts = result.Facts("random:rank=4", 2, 100, 400)
    checks = (gate.Check("the adapter changes the image", "7 of 255 levels", True),)
    return result.Result(settings, record(torch.device("cpu")), facts, checks, handled, peaks, tuple(made), True)


def draw(components):
    return next(generate(components, [Request("a cat face", seed=1, steps=2)])).image


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
    wide = [t * (1.2 if i % 2 else 1 / 1.2) for i, t in enumerate(base)]
    assert "not within the margin" in report.markdown(invented(settings, {"base": base, "base again": wide}))
    assert "and is within the margin" in report.markdown(invented(settings, {"base": base, "base again": base}))


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
    subject = Subject(components, {"a cat face": adapters.companions(adapter, components, 8)}, 1.0, None, None)
    for name in (name for name, condition in CONDITIONS.items() if not condition.stock):
        with active(subject, name, "a cat face") as found:
            image = found.draw([Request("a cat face", seed=1, steps=2)])[0]
            assert (gate.image_hash(image) == base) == (name in ("base", "base again", "idle")), name
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


def test_what_was_measured_before_an_interruption_is_kept(settings, components, monkeypatch):
    calls, original = [], measure.timed

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 11:  # in the third block of four conditions
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(measure, "timed", interrupted)
    outcome = benchmark.run(settings, components)
    assert not outcome.result.complete and len(result.read(outcome.json).samples) == 8
    assert "Interrupted: 2 of 3 blocks" in outcome.markdown.read_text() and outcome.plot is not None


def test_the_command_measures_and_says_where_the_files_are(settings, capsys):
    changes = [
        "adapter=random:rank=2",
        "prompts=['a cat']",
        "steps=1",
        "warmup=1",
        "blocks=2",
        "repeats=2",
        "resamples=200",
        "conditions=['stacked']",
    ]
    assert cli.main(["benchmark", f"base={settings.base}", f"output={settings.output}", *changes]) == 0
    out = capsys.readouterr().out
    assert "stacked" in out and "benchmark.json" in out and (settings.output / "benchmark.md").is_file()


def test_the_report_is_made_anew_from_the_samples_alone(settings, tmp_path, capsys):
    seconds = {"base": [1.0, 1.1, 0.9], "base again": [1.01, 1.09, 0.9], "stacked": [1.2, 1.3, 1.1]}
    result.write(invented(settings, seconds), tmp_path / "b.json", analysed=False)
    assert cli.main(["benchmark", "analyse", str(tmp_path / "b.json")]) == 0
    assert "slower" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", "b.md", "b.html", "b.png"}
    first = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".png"}
    assert cli.main(["benchmark", "analyse", str(tmp_path / "b.json")]) == 0
    assert first == {path: path.read_bytes() for path in first}


@pytest.mark.parametrize("words", [["analyse"], ["analyse", "nowhere.json"], ["analyse", "a.json", "b.json"]])
def test_analyse_without_its_one_file_is_one_clear_error(words, capsys):
    assert cli.main(["benchmark", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_page_stands_alone_with_the_pictures_of_every_condition(settings, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    made = invented(settings, {"base": [1.0, 1.1, 0.9], "stacked": [1.2, 1.3, 1.1]})
    pictures = (result.Pictured("a cat face", 1, "base", "x.png"), result.Pictured("a cat face", 1, "stacked", "gone.png"))
    text = html.page(replace(made, pictures=pictures), result.analyse(made), tmp_path, tmp_path / "x.png")
    assert text.count("data:image/png;base64,") == 2 and "gone.png is gone" in text
    assert "http" not in text and 'src="data:' in text and "<script" not in text
    hostile = html.page(replace(made, subject=replace(made.subject, name="<b>&")), None, tmp_path, None)
    assert "&lt;b&gt;&amp;" in hostile and "<b>" not in hostile


def test_the_published_table_has_a_line_for_each_prompt_and_its_form_of_time(settings):
    made = invented(settings, {"base": [61.24, 61.26, 61.3], "stacked": [125.0, 126.0, 127.0]})
    made = replace(made, config=made.config.model_copy(update={"runs": (3,)}))
    text = report.markdown(made)
    assert "| a cat face | 3 | 1:01.3 | 2:06.0 |" in text and "| prompt | runs | without LoRA | with LoRA (stacked) |" in text
    assert [report.span(t) for t in (0, 59.96, 3599.96, 5.04)] == ["0:00.0", "1:00.0", "60:00.0", "0:05.0"]


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


def test_peft_is_asked_for_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("sdlora.benchmark.conditions.find_spec", lambda name: None)
    assert not any(name.startswith("PEFT") for name in chosen(BenchmarkConfig()))
    with pytest.raises(SdloraError, match="need the package peft"):
        chosen(BenchmarkConfig(conditions=("PEFT",)))


def test_the_command_refuses_an_unknown_setting_in_one_line(capsys):
    assert cli.main(["benchmark", "blokcs=3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown setting blokcs")


# Bases made on the spot, goals, and the arithmetic


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
        benchmark.run(BenchmarkConfig(base="/nowhere", steps=1, conditions=("diffusers",), output=tmp_path))


def test_a_margin_of_its_own_and_a_goal_change_verdict_and_outcome(settings):
    base = [1.0 + 0.01 * i for i in range(12)]
    slower = [t * (1.03 + 0.001 * (i % 3)) for i, t in enumerate(base)]
    named = {"margins": {"fused": 0.01}, "limits": {"stacked": 1.02, "fused": 1.1, "stacked / PEFT": 0.5}}
    made = invented(settings, {"base": base, "stacked": slower, "fused": slower})
    analysis = result.analyse(replace(made, config=made.config.model_copy(update=named)))
    assert analysis is not None
    assert analysis.row("stacked").comparison.verdict == "equivalent" and analysis.row("fused").comparison.verdict == "slower"
    assert {goal.name: goal.outcome for goal in analysis.goals} == {"stacked": "missed", "fused": "met"}
    assert report.outcome(analysis.goals[0]) == "missed by 1.1 %"


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


def test_margins_and_goals_of_today_are_not_said_of_a_run_that_did_not_declare_them(settings, tmp_path):
    made = invented(settings, {"base": [1.0, 1.1], "stacked": [1.2, 1.3]})
    result.write(made, tmp_path / "b.json")
    old = json.loads((tmp_path / "b.json").read_text())
    del old["config"]["margins"], old["config"]["limits"], old["work"]
    (tmp_path / "b.json").write_text(json.dumps(old))
    read = result.read(tmp_path / "b.json")
    assert read.config.margins == {} and read.config.limits == {} and read.work == ()


def test_a_ratio_that_drifts_is_pointed_out(settings):
    base = [1.0] * 20
    rising = [1.0 + 0.01 * i + 0.001 * (i % 3) for i in range(20)]
    steady = [1.0 + 0.001 * (i % 3) for i in range(20)]
    assert "drifted: stacked by +17" in report.markdown(invented(settings, {"base": base, "stacked": rising, "fused": steady}))
    assert "drifted" not in report.markdown(invented(settings, {"base": base, "stacked": steady}))


def test_operations_are_compared_round_by_round(settings):
    from sdlora.benchmark.names import LATE, READY, THEIRS

    theirs = (0.1, 0.2, 0.11, 0.12, 0.1, 0.13, 0.12)
    handled = [handling.Handling(name, tuple(t / k for t in theirs)) for name, k in ((READY, 20.0), (LATE, 10.0), (THEIRS, 1.0))]
    made = invented(settings, {"base": [1.0, 1.1], "stacked": [1.2, 1.3]})
    made = replace(made, handling=tuple(handled), config=made.config.model_copy(update={"limits": {f"{READY} / {THEIRS}": 0.1}}))
    analysis = result.analyse(made)
    assert {(p.condition, p.against): p.comparison.ratio for p in analysis.handling} == pytest.approx(
        {(READY, THEIRS): 0.05, (LATE, READY): 2.0}
    )
    assert [goal.outcome for goal in analysis.goals] == ["met"] and "| 20 |" in report.markdown(made)


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


def test_check_compares_ours_with_the_reference_and_nothing_else(settings, tmp_path, capsys):
    base = [1.0, 1.1, 0.9, 1.0, 1.02, 0.98, 1.01, 0.99]

    def file(name, stacked, peft):
        times = {
            "base": base,
            "stacked": [t * stacked for t in base],
            "PEFT": [t * peft * (1 + 0.01 * (i % 2)) for i, t in enumerate(base)],
        }
        result.write(invented(settings, times), tmp_path / name)
        return str(tmp_path / name)

    old, worse, theirs_worse = file("old", 1.05, 1.2), file("worse", 1.3, 1.2), file("theirs", 1.05, 1.5)
    assert cli.main(["benchmark", "check", old, old]) == 0
    assert cli.main(["benchmark", "check", theirs_worse, old]) == 0  # the reference became slower: no fault of ours
    assert cli.main(["benchmark", "check", worse, old]) == 1
    capsys.readouterr()
    assert cli.main(["benchmark", "check", old]) == 2
    assert "takes 2 files" in capsys.readouterr().err
    without = tmp_path / "without"
    result.write(invented(settings, {"base": base, "stacked": base}), without)
    assert cli.main(["benchmark", "check", str(without), old]) == 2
    assert "no ratio of ours to the reference in common" in capsys.readouterr().err


def test_the_recorded_results_can_be_read_and_held_against_themselves():
    from sdlora.benchmark import compared

    files = sorted((ROOT / "docs" / "benchmarks").glob("*/benchmark.json"))
    assert files
    for file in files:
        assert not any(one.worse or one.better for one in compared.compare(file, file))
