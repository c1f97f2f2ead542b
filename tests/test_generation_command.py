"""`sdlora generate`: its files, its grammar, and one clear line for each mistake."""

import hashlib
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from sdlora import apply, files
from sdlora.adapter import Adapter
from sdlora.commands import generate
from sdlora.commands.drawing_options import check_prompts
from sdlora.errors import SdloraError
from sdlora.generation import parse_adapter, parse_seeds
from sdlora.images import read_settings
from sdlora.kinds.lora import Lora
from sdlora.layers import named_layers
from sdlora.strength import strength

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tiny_base: Path):
    """Calls the command with the tiny base and two steps; errors come through as they are."""
    app = typer.Typer()
    generate.register(app)

    def call(*arguments: str | Path) -> str:
        common = ["--base", str(tiny_base), "--steps", "2", "--device", "cpu"]  # first: the last of several equal options wins
        return CliRunner().invoke(app, [*common, *map(str, arguments)], catch_exceptions=False).output

    return call


@pytest.fixture(scope="module")
def style(components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator, layers = torch.Generator().manual_seed(5), named_layers(components.modules)

    def update(out: int, inside: int) -> Lora:
        return Lora(torch.randn(2, inside, generator=generator), torch.randn(out, 2, generator=generator) / 8, 2.0)

    updates = {name: update(*layers[name].weight.shape) for name in apply.select(components.modules)}
    return files.save(Adapter(updates, {}), tmp_path_factory.mktemp("adapters") / "style.safetensors")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_prompt_and_one_seed_is_one_picture_without_a_sheet(run, tmp_path: Path):
    assert "0001-seed7.png" in run("a cat", "--seed", "7", "--output", tmp_path / "new" / "folder")
    assert names(tmp_path / "new" / "folder") == ["0001-seed7.png"]


def test_a_second_run_goes_on_counting_and_overwrites_nothing(run, tmp_path: Path):
    run("a cat", "--seed", "1,2", "--output", tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    run("a cat", "--seed", "1-2", "--output", tmp_path)
    assert names(tmp_path) == [
        *("0001-seed1.png", "0002-seed2.png", "0003-seed1.png", "0004-seed2.png"),
        *("sheet-0001-0002.png", "sheet-0003-0004.png"),
    ]
    assert all((tmp_path / name).read_bytes() == data for name, data in first.items())
    assert (tmp_path / "0003-seed1.png").read_bytes() == first["0001-seed1.png"]  # the same settings, the same file


def test_prompts_times_seeds_and_the_sheet_shows_them_all(run, tmp_path: Path):
    run("a cat", "a dog", "--seed", "1-3", "--output", tmp_path)
    assert [read_settings(tmp_path / name)["prompt"] for name in names(tmp_path)[:6]] == ["a cat"] * 3 + ["a dog"] * 3
    sheet = Image.open(tmp_path / "sheet-0001-0006.png")
    assert sheet.width > 3 * 192 and 2 * 192 < sheet.height < 3 * 192


def test_many_seeds_of_one_prompt_are_broken_into_rows(run, tmp_path: Path):
    run("a cat", "--seed", "1-10", "--guidance", "1", "--output", tmp_path)
    sheet = Image.open(tmp_path / "sheet-0001-0010.png")
    assert 8 * 192 < sheet.width < 10 * 192 and sheet.height > 2 * 192


def test_a_picture_carries_all_its_settings(run, style: Path, components, tmp_path: Path):
    run("a cat", "--negative", "blue", "--seed", "3", "--adapter", f"{style}=0.8", "--guidance", "4", "--width", "80", "--output", tmp_path)
    found = read_settings(tmp_path / "0001-seed3.png")
    assert found.pop("version").startswith("sdlora ")
    assert found == {
        **{"prompt": "a cat", "negative": "blue", "seed": 3, "steps": 2, "sampler": "Euler", "schedule": "uniform", "guidance": 4.0},
        **{"width": 80, "height": 64, "noise": "cpu", "apply": "stacked", "precision": "float32", "device": "cpu"},
        "base": {"name": "tiny", "hash": components.hash, "prediction": "epsilon"},
        "adapters": [
            {
                "file": "style.safetensors",
                "strength": 0.8,
                "sha256": hashlib.sha256(style.read_bytes()).hexdigest(),
                "hash": files.read_metadata(style)["sshs_model_hash"][:12],  # what A1111 shows
            }
        ],
    }


def test_the_sampler_its_settings_and_the_source_of_noise_are_carried_too(run, tmp_path: Path):
    run("a cat", "--sampler", "k_euler_a", "--schedule", "Karras", "--eta", "0.5", "--noise", "NV", "--output", tmp_path)
    run("a cat", "--sampler", "DPM++ 3M SDE", "--seed", "1-2", "--output", tmp_path)
    first, second = (read_settings(tmp_path / name) for name in ("0001-seed1.png", "0002-seed1.png"))
    assert (first["sampler"], first["schedule"], first["eta"], first["noise"]) == ("Euler a", "karras", 0.5, "cuda")
    assert (second["sampler"], second["schedule"], second["noise"]) == ("DPM++ 3M SDE", "exponential", "cpu")
    assert "eta" not in second


def test_a_picture_from_a_picture_carries_what_it_was_made_from(run, tmp_path: Path):
    Image.new("RGB", (96, 64), "orange").save(tmp_path / "photo.png")
    Image.new("L", (96, 64), 255).save(tmp_path / "mask.png")
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    run("a cat", "--init", photo, "--denoise", "0.6", "--mask", mask, "--masked-content", "noise", "--output", tmp_path / "out")
    found = read_settings(tmp_path / "out" / "0001-seed1.png")
    assert found["init"] == {"file": "photo.png", "sha256": hashlib.sha256(photo.read_bytes()).hexdigest()}
    assert found["mask"] == {"file": "mask.png", "sha256": hashlib.sha256(mask.read_bytes()).hexdigest()}
    told = {"denoise": 0.6, "resize": "crop", "mask_blur": 2.0, "masked_content": "noise", "width": 96, "height": 64}
    assert {name: found[name] for name in told} == told


def test_a_hires_picture_and_variations_carry_their_settings(run, tmp_path: Path):
    arguments = ["--hires", "1.5", "--hires-steps", "1", "--hires-upscaler", "latent-nearest", "--sampler", "Euler a", "--ensd", "31337"]
    run("a cat", *arguments, "--variation-seed", "8", "--variation-strength", "0.25", "--output", tmp_path)
    first = read_settings(tmp_path / "0001-seed1.png")
    told = {"hires": 1.5, "hires_denoise": 0.7, "hires_steps": 1, "hires_upscaler": "Latent (nearest)", "ensd": 31337}
    assert {name: first[name] for name in told} == told
    assert (first["width"], first["variation_seed"], first["variation_strength"]) == (64, 8, 0.25)
    assert Image.open(tmp_path / "0001-seed1.png").size == (96, 96)


def test_strength_zero_draws_the_bases_pixels_and_another_strength_does_not(run, style: Path, tmp_path: Path):
    for eta in ("0", "1"):
        run("a cat", "--adapter", f"{style}={eta}", "--output", tmp_path)
    run("a cat", "--output", tmp_path)
    zero, one, base = (Image.open(tmp_path / f"000{i}-seed1.png").tobytes() for i in (1, 2, 3))
    assert zero == base != one


def test_a_prompt_beyond_75_tokens_is_read_to_its_end(run, tmp_path: Path):
    run("cat " * 100, "cat " * 100 + "dog", "--output", tmp_path)
    one, two = (Image.open(tmp_path / f"000{i}-seed1.png").tobytes() for i in (1, 2))
    assert one != two


@pytest.mark.parametrize(("text", "seeds"), [("7", [7]), ("1-4", [1, 2, 3, 4]), ("1,5,9", [1, 5, 9]), ("3-4, 9,3", [3, 4, 9]), ("0", [0])])
def test_seeds_are_single_ones_lists_and_spans(text: str, seeds: list[int]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-3", "4-1", "1,,2", "1.5", "1-99999999", "²", "9" * 30])
def test_malformed_seeds_are_one_line(text: str):
    with pytest.raises(SdloraError, match="--seed") as error:
        parse_seeds(text)
    assert "\n" not in str(error.value)


def test_an_adapter_is_a_file_and_a_strength(tmp_path: Path):
    for name in ("a.safetensors", "b=2.safetensors"):
        (tmp_path / name).touch()
    assert parse_adapter(f"{tmp_path}/a.safetensors=-0.5") == (tmp_path / "a.safetensors", strength(-0.5))
    assert parse_adapter(f"{tmp_path}/a.safetensors") == (tmp_path / "a.safetensors", strength(1))
    assert parse_adapter(f"{tmp_path}/b=2.safetensors=0.3") == (tmp_path / "b=2.safetensors", strength(0.3))
    assert parse_adapter(f"{tmp_path}/b=2.safetensors") == (tmp_path / "b=2.safetensors", strength(1))
    assert parse_adapter(f"{tmp_path}/b=2.safetensors=te=0.3:unet=1") == (tmp_path / "b=2.safetensors", strength("0.3:1"))


@pytest.mark.parametrize("text", ["much", "nan", "inf", "", "0,8"])
def test_a_malformed_strength_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(SdloraError, match="strength") as error:
        parse_adapter(f"{tmp_path}/a.safetensors={text}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "nowhere.safetensors=1"], "no file 'nowhere.safetensors'"),
        (["--seed", "x"], "--seed 'x'"),
        (["--base", "emojy"], "emojy.*emoji"),
        (["--apply", "fuse"], "fuse.*fused"),
        (["--device", "gpu"], "gpu.*cpu"),
        (["--precision", "fp8"], "fp8.*fp"),
        (["--width", "65"], "width 65.*multiple of 4"),
        (["--steps", "0"], "steps is 0"),
        (["--sampler", "DPM++ 2N"], r"unknown sampler 'DPM\+\+ 2N'; did you mean DPM\+\+ 2M"),
        (["--schedule", "karas"], "karas.*karras"),
        (["--eta", "1"], "eta has no effect with the sampler Euler"),
        (["--noise", "gqu"], "gqu.*gpu"),
        (["--denoise", "0.5"], "denoise has no effect without init"),
        (["--init", "nowhere.png"], "there is no picture nowhere.png"),
        (["--hires", "2", "--hires-upscaler", "latnet"], "unknown upscaler 'latnet'; did you mean latent"),
        (["--hires", "0.5"], "hires is 0.5"),
        (["--sampler", "LCM", "--steps", "60"], "steps is 60; the schedule lcm"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_picture(run, tmp_path: Path, arguments: list[str], message: str):
    with pytest.raises(SdloraError, match=message) as error:
        run("a cat", "--output", tmp_path, *arguments)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_drawn(run, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(SdloraError, match="cannot write into"):
        run("a cat", "--output", tmp_path / "file")


def test_a_file_that_is_no_adapter_is_one_line(run, tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(SdloraError, match=r"a\.safetensors"):
        run("a cat", "--output", tmp_path / "out", "--adapter", tmp_path / "a.safetensors")
    assert names(tmp_path / "out") == []


def test_the_short_program_draws_the_same(run, tiny_base: Path, tmp_path: Path):
    run("a cat", "--output", tmp_path / "command")
    program = [sys.executable, str(ROOT / "infer" / "generate.py"), "a cat", "--output", str(tmp_path / "program")]
    settings = ["--base", str(tiny_base), "--steps", "2", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*program, *settings], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name = "0001-seed1.png"
    assert (tmp_path / "program" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps=6", "'steps=6' stands among the prompts; .* write --steps 6"),
        ("hires-upscaler=Latent (nearest)", "write --hires-upscaler Latent"),
        ("from=a.png", "write --from a.png"),
        ("step=6", "write --steps 6"),
        ("a=b, a formula", ""),
        ("a cat, steps=6", ""),
        ("E=mc²", ""),
    ],
)
def test_a_setting_among_the_prompts_is_not_drawn_as_one(text: str, message: str):
    with pytest.raises(SdloraError, match=message) if message else nullcontext():
        check_prompts(["a cat", text])
