"""A benchmark's samples: to JSON and back, to tables, pages and plots, and held against what was recorded."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import invented, small

from sdlora import cli
from sdlora.benchmark import handling, html, plot, report, result
from sdlora.errors import SdloraError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(tiny_base, tmp_path):
    return small(tiny_base, tmp_path / "out")


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


def test_a_file_with_wrong_settings_is_told_of_in_one_line_with_the_first_of_them(tmp_path):
    content = {"format": result.FORMAT, "config": {"steps": "many", "nosuch": 1}}
    (tmp_path / "b.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SdloraError, match=r"steps is 'many'.*it should be the benchmark\.json of a run$") as found:
        result.read(tmp_path / "b.json")
    assert "\n" not in str(found.value)


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
    assert [report.duration(t) for t in (0.9996, 0.0009996, 1234.5, 0)] == ["1 s", "1 ms", "1230 s", "0 µs"]


def test_the_plot_is_a_picture(settings, tmp_path):
    from PIL import Image

    made = invented(settings, {"base": [1.0, 1.1, 0.9], "base again": [1.01, 1.09, 0.9], "stacked": [1.2, 1.3, 1.1]})
    analysis = result.analyse(made)
    assert analysis is not None
    plot.save(made, analysis, tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").width > 1000


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
    referred = [file for file in files if list(compared.ratios(file))]  # the others were read: they have no reference
    assert {file.parent.name[11:] for file in referred} >= {"emoji", "training"}
    for file in referred:
        assert not any(one.worse or one.better for one in compared.compare(file, file))
