"""Laws of `sdlora adapter describe` and `convert`."""

import json
import re

import pytest
import torch
from safetensors.torch import load
from test_manifests import manifest

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.commands import adapter as command
from sdlora.errors import SdloraError
from sdlora.generation import parse_adapter
from sdlora.kinds.lora import Lora


@pytest.fixture
def run(command_line):
    return command_line(command, "adapter")


@pytest.fixture
def file(components, random_adapter, tiny_base, tmp_path):
    made = random_adapter(components.modules, ("attention", "text_mlp"), rank=4, alpha=2.0)
    metadata = files.header(made.layers, name="ink", base=str(tiny_base), triggers=("in ink",))
    return files.save(Adapter(made.layers, metadata), tmp_path / "ink.safetensors")


def test_a_hash_is_shown_in_one_piece_however_narrow_the_terminal(run, file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert re.search(r"^sshs_model_hash: [0-9a-f]{64}$", run("describe", file), re.MULTILINE)


def test_describe_has_all_of_the_file_in_json(run, file, components):
    adapter = files.load(file, components.modules)
    facts = json.loads(run("describe", file, "--json"))
    assert (facts["dialect"], facts["trainer"], facts["family"], facts["kind"]) == ("kohya", "sdlora", "sd1", "LoRA")
    assert facts["components"] == {"text_encoder": 4, "unet": 56} and len(facts["layers"]) == len(adapter.layers) == 60
    assert facts["ranks"] == {"4": 60} and facts["alphas"] == {"2.0": 60} and facts["precisions"] == ["float32"]
    assert facts["parameters"] == adapter.parameters == sum(layer["parameters"] for layer in facts["layers"])
    assert facts["ratio"] == facts["parameters"] / sum(layer["full"] for layer in facts["layers"])
    assert facts["triggers"] == ["in ink"] and facts["metadata"]["ss_output_name"] == "ink"


def test_the_norms_are_those_of_the_updates_by_layer_and_by_block(run, file, components):
    """Against ΔW itself, formed in fp64."""
    facts = json.loads(run("describe", file, "--json"))
    squares: dict[str, float] = {}
    for layer in facts["layers"]:
        update = files.read(file).layers[layer["name"]]
        delta = update.alpha / update.rank * update.b.flatten(1).double() @ update.a.flatten(1).double()
        assert layer["norm"] == pytest.approx(delta.norm().item(), rel=1e-12)
        part = next(block for block in facts["blocks"] if layer["name"].startswith(block["name"] + "."))
        squares[part["name"]] = squares.get(part["name"], 0.0) + delta.square().sum().item()
    assert (
        squares.keys() == {block["name"] for block in facts["blocks"]} >= {"unet.mid_block.attentions.0", "unet.up_blocks.0.attentions.1"}
    )
    assert all(block["norm"] == pytest.approx(squares[block["name"]] ** 0.5, rel=1e-12) for block in facts["blocks"])
    assert sum(block["layers"] for block in facts["blocks"]) == 60
    assert facts["norm"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-12)


def test_describe_says_where_header_and_layers_contradict_each_other(run, tmp_path):
    path = tmp_path / "a.safetensors"
    for said, contradiction in (("sd_v1", True), ("sdxl_base_v1-0", False)):
        path.write_bytes(files.serialised(manifest("sdxl-kohya-sgm")[1], {"ss_base_model_version": said}))
        text = run("describe", path)
        assert "made for Stable Diffusion XL" in text
        assert ("its header says sd1, its layers sdxl" in text) == contradiction


def test_describe_prints_a_table_of_blocks_or_of_layers(run, file):
    facts = json.loads(run("describe", file, "--json"))
    table = run("describe", file)
    assert f"{facts['parameters']:,}" in table and "60 layers: text_encoder 4, unet 56" in table and "trigger words: in ink" in table
    assert "made for Stable Diffusion 1.x by sdlora" in table and "modelspec.trigger_phrase: in ink" in table
    assert all(block["name"] in table and f"{block['norm']:.4g}" in table for block in facts["blocks"])
    rows = run("describe", file, "--layers")
    assert all(layer["name"] in rows and f"{layer['norm']:.4g}" in rows for layer in facts["layers"])


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_convert_there_and_back_gives_the_same_bytes(run, file, tmp_path, format):
    assert run("convert", file, tmp_path / "there.safetensors", "--format", format).strip().endswith(f"60 layers, from kohya to {format}")
    assert files.format_of(tmp_path / "there.safetensors") == format
    run("convert", tmp_path / "there.safetensors", tmp_path / "back.safetensors", "--format", "kohya")
    assert (tmp_path / "back.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "name", ["sd1-locon", "sd1-diffusers-old", "sd1-peft-folder", "sd2-peft", "sdxl-kohya-sgm", "sdxl-locon", "sdxl-diffusers"]
)
def test_convert_needs_no_model_and_keeps_every_matrix_and_alpha_from_any_dialect_to_any(run, tmp_path, name):
    """ΔW by its formula in fp64 from the files' own tensors, on the way from each foreign dialect through all three of ours."""
    start, tensors = tmp_path / "start.safetensors", manifest(name)[1]
    halves = {
        key: tensor if key.endswith("alpha") else tensor.to((torch.float16, torch.bfloat16)[i % 2])
        for i, (key, tensor) in enumerate(tensors.items())
    }
    start.write_bytes(files.serialised(halves, {}))
    first, source = files.read(start), start
    for format in ("kohya", "peft", "diffusers", "kohya"):
        target = tmp_path / f"{source.stem}-{format}.safetensors"
        run("convert", source, target, "--format", format)
        now, source = files.read(target), target
        assert now.layers.keys() == first.layers.keys()
        for layer, update in first.layers.items():
            other = now.layers[layer]
            assert torch.equal(other.a, update.a) and torch.equal(other.b, update.b) and other.alpha == update.alpha
            assert other.a.dtype == update.a.dtype and other.b.dtype == update.b.dtype
            deltas = [u.alpha / u.rank * (u.b.flatten(1).double() @ u.a.flatten(1).double()) for u in (update, other)]
            assert torch.equal(*deltas)


def test_convert_with_a_base_gives_1x1_convolutions_its_shape(run, file, components, random_adapter, tiny_base, tmp_path):
    whole = random_adapter(components.modules, ("projections",))
    flat = {name: Lora(u.a.flatten(1), u.b.flatten(1), u.alpha) for name, u in whole.layers.items()}
    path = files.save(Adapter(flat), tmp_path / "flat.safetensors")
    run("convert", path, tmp_path / "out.safetensors", "--format", "peft", "--base", tiny_base)
    found = files.read(tmp_path / "out.safetensors").layers
    assert all(torch.equal(found[name].a, update.a) and found[name].a.dim() == 4 for name, update in whole.layers.items())


def test_convert_names_the_embeddings_that_it_leaves_out_and_refuses_to_lose_what_it_does_not_know(run, file, tmp_path):
    tensors = load(file.read_bytes()) | {"bundle_emb.<ink>.clip_l": torch.ones(2, 3)}
    file.write_bytes(files.serialised(tensors, {}))
    assert "left out: the embedding of '<ink>'" in run("convert", file, tmp_path / "out.safetensors", "--format", "peft")
    assert "bundled embeddings, which are not used: <ink>" in run("describe", file)
    file.write_bytes(files.serialised(tensors | {"emb_params": torch.ones(1)}, {}))
    assert "1 tensors of no layer: emb_params" in run("describe", file)
    with pytest.raises(SdloraError, match="1 tensors would be lost, for example emb_params"):
        run("convert", file, tmp_path / "lost.safetensors", "--format", "peft")
    assert not (tmp_path / "lost.safetensors").exists()


def test_the_folder_of_a_program_and_an_old_pickle_are_adapters_too(run, file, tmp_path):
    (tmp_path / "run").mkdir()
    tensors = load(file.read_bytes())
    files.save(files.read(file), tmp_path / "run" / "pytorch_lora_weights.safetensors", "peft")
    torch.save(tensors, tmp_path / "old.pt")
    assert parse_adapter(f"{tmp_path / 'run'}=0.5")[0] == tmp_path / "run" / "pytorch_lora_weights.safetensors"
    with pytest.raises(SdloraError, match="is a folder without adapter_model.safetensors"):
        parse_adapter(f"{tmp_path}=0.5")
    for source in (tmp_path / "run", tmp_path / "old.pt"):
        facts = json.loads(run("describe", source, "--json"))
        assert facts["parameters"] == json.loads(run("describe", file, "--json"))["parameters"]
        run("convert", source, tmp_path / f"{source.stem}.safetensors", "--format", "kohya")
        assert load((tmp_path / f"{source.stem}.safetensors").read_bytes()).keys() == tensors.keys()


def test_convert_writes_over_nothing_and_only_safetensors(run, file, tmp_path):
    with pytest.raises(SdloraError, match="is there already; give another name, or remove it"):
        run("convert", file, file, "--format", "peft")
    with pytest.raises(SdloraError, match="cannot write .*out.pt: give a name that ends in .safetensors"):
        run("convert", file, tmp_path / "out.pt", "--format", "peft")


def test_convert_says_what_is_wrong(run, file, tmp_path):
    with pytest.raises(SdloraError, match="unknown adapter format 'pfet'; did you mean peft?"):
        run("convert", file, tmp_path / "out.safetensors", "--format", "pfet")
    with pytest.raises(SdloraError, match="unknown base model"):
        run("convert", file, tmp_path / "out.safetensors", "--format", "peft", "--base", "nowhere")
    with pytest.raises(SdloraError, match="does not exist"):
        run("describe", tmp_path / "none.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
