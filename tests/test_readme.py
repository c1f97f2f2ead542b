"""The README is checked: its commands parse, its links lead somewhere, its settings load and its Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from sdlora import cli

ROOT = Path(__file__).parents[1]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md")}


def blocks(language: str, text: str = TEXTS["README.md"]) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def command_lines(program: str) -> list[list[str]]:
    """The words behind `program` in all bash blocks of README and CONTRIBUTING."""
    lines = [line for name in ("README.md", "CONTRIBUTING.md") for block in blocks("bash", TEXTS[name]) for line in block.splitlines()]
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True)) and words[0] == program]


@pytest.mark.parametrize("words", command_lines("sdlora"), ids=" ".join)
def test_every_command_of_the_readme_parses(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = typer.main.get_command(cli.build())
    while subcommands := getattr(command, "commands", {}):
        command, words = subcommands[words[0]], words[1:]
    command.make_context(command.name, list(words)).close()  # raises a usage error for an option that does not exist


def test_every_command_is_shown_in_the_readme():
    assert {words[0] for words in command_lines("sdlora")} >= {"train", "generate", "benchmark", "adapter"}


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {words[0] for words in command_lines("make")} <= targets


def test_every_script_and_config_that_is_named_exists():
    named = [
        word for words in command_lines("python") + command_lines("sdlora") for word in words if re.match(r"(train|infer|configs)/", word)
    ]
    assert named and not [word for word in named if not (ROOT / word).is_file()]


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_to_a_file(name):
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXTS[name])
    missing = [target for target in targets if not ((ROOT / name).parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("block", [block for block in blocks("toml") if "[x]" not in block])
def test_every_settings_file_of_the_readme_is_valid(block, tmp_path, monkeypatch):
    from sdlora import TrainConfig, config

    monkeypatch.chdir(ROOT)
    path = tmp_path / "own.toml"
    path.write_text(block, encoding="utf-8")
    assert str(config.load(TrainConfig, path, []).images).endswith("datasets/octopus")


def test_the_grid_of_the_readme_is_one(tmp_path):
    from sdlora.drawing.grid import Grid

    (block,) = [block for block in blocks("toml") if "[x]" in block]
    (tmp_path / "grid.toml").write_text(block, encoding="utf-8")
    grid = Grid.read(tmp_path / "grid.toml")
    assert grid.shape == (3, 2, 1) and len(grid.cells()) == 6


@pytest.mark.slow
def test_the_python_of_the_readme_draws_a_picture(tmp_path, monkeypatch):
    import torch
    from PIL import Image

    from sdlora import apply, files, models

    (snippet,) = blocks("python")
    (adapter,) = re.findall(r'"([^"]+\.safetensors)"', snippet)
    monkeypatch.chdir(tmp_path)
    base = models.load("emoji")
    names = apply.select(base.modules, ["attention"])
    apply.inject(base.modules, names, rank=2, alpha=2.0, generator=torch.Generator().manual_seed(0))
    Path(adapter).parent.mkdir(parents=True)
    files.save(apply.extract(base.modules, {}), adapter)
    exec(compile(snippet, "README.md", "exec"), {})  # our own text, in a folder of its own
    (drawn,) = tmp_path.glob("*.png")
    with Image.open(drawn) as image:
        assert image.size == (64, 64) and image.convert("L").getextrema()[0] < 128
