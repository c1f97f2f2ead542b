"""Laws of `sdlora adapter describe` and `convert`."""

import json

import pytest
import typer
from typer.testing import CliRunner

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.commands import adapter as command
from sdlora.errors import SdloraError


@pytest.fixture
def run(monkeypatch):
    """A function: command-line words -> what was printed. Errors of the user's pass through, as they do to the real CLI."""
    monkeypatch.setenv("COLUMNS", "220")
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)

    def call(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in ("adapter", *words)])
        if isinstance(result.exception, SdloraError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return call


@pytest.fixture
def file(components, random_adapter, tiny_base, tmp_path):
    made = random_adapter(components.modules, ("attention", "text_mlp"), rank=4, alpha=2.0)
    metadata = files.header(made.layers, name="ink", base=str(tiny_base), triggers=("in ink",))
    return files.save(Adapter(made.layers, metadata), tmp_path / "ink.safetensors")


def test_describe_counts_every_layer_and_the_total(run, file, components):
    adapter = files.load(file, components.modules)
    facts = json.loads(run("describe", file, "--json"))
    assert facts["format"] == "kohya" and len(facts["layers"]) == len(adapter.layers) == 60
    assert facts["parameters"] == adapter.parameters == sum(layer["parameters"] for layer in facts["layers"])
    assert facts["ratio"] == facts["parameters"] / sum(layer["full"] for layer in facts["layers"])
    assert facts["metadata"]["ss_output_name"] == "ink"
    table = run("describe", file)
    assert f"{adapter.parameters:,}" in table and "60 layers" in table and "modelspec.trigger_phrase: in ink" in table


def test_convert_there_and_back_gives_the_same_bytes(run, file, tmp_path):
    run("convert", file, tmp_path / "peft.safetensors", "--format", "peft")
    assert files.format_of(tmp_path / "peft.safetensors") == "peft"
    run("convert", tmp_path / "peft.safetensors", tmp_path / "back.safetensors", "--format", "kohya")
    assert (tmp_path / "back.safetensors").read_bytes() == file.read_bytes()


def test_convert_says_what_is_wrong(run, file, tmp_path):
    with pytest.raises(SdloraError, match="unknown adapter format 'pfet'; did you mean peft?"):
        run("convert", file, tmp_path / "out.safetensors", "--format", "pfet")
    with pytest.raises(SdloraError, match="unknown base model"):
        run("convert", file, tmp_path / "out.safetensors", "--format", "peft", "--base", "nowhere")
    with pytest.raises(SdloraError, match="does not exist"):
        run("describe", tmp_path / "none.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
