"""The README's figures are those of the newest results."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_figures_of_the_newest_results(figures):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert figures.placed(text) == text, "run python docs/figures.py"


def test_the_newest_folder_of_a_kind_counts(figures, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    for name in ("2026-01-02-emoji", "2025-12-31-emoji", "2027-01-01-table2-emoji"):
        (tmp_path / "docs" / "benchmarks" / name).mkdir(parents=True)
        (tmp_path / "docs" / "benchmarks" / name / "benchmark.json").touch()
    assert figures.newest("emoji").parent.name == "2026-01-02-emoji" and figures.newest("training") is None


def test_a_readme_without_its_markers_is_refused(figures):
    with pytest.raises(SystemExit, match="lacks the markers"):
        figures.placed("# sdlora")
