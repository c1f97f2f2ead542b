"""Every preset in configs/ is planned on networks of the true size, without their weights."""

import re
from pathlib import Path

import folders
import pytest
import torch
from checkpoint_models import hollow_file

from sdlora import config as files
from sdlora import models
from sdlora.training import TrainConfig, fitting, footprint, planning
from sdlora.training.footprint import GIB

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = sorted(path.stem for path in CONFIGS.glob("sd*.toml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A function family -> a checkpoint file of the true shapes, with holes for weights."""
    from functools import cache

    return cache(lambda family: hollow_file(tmp_path_factory.mktemp(family) / f"{family}.safetensors", family))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folders.pictures(tmp_path_factory.mktemp("pictures"), [(96 + 8 * i, 96) for i in range(12)], "zorbot, number {}, outdoors")


def preset(name: str, base, pictures: Path, output: Path) -> TrainConfig:
    family = "sd1" if name.startswith("sd15") else "sdxl"
    words = [f"base={base(family)}", f"images={pictures}", f"output={output}", "device=cpu"]
    return files.load(TrainConfig, CONFIGS / f"{name}.toml", words)


def test_there_is_one_for_each_purpose():
    assert PRESETS == ["sd15-character", "sd15-style", "sdxl-12gb", "sdxl-8gb", "sdxl-character", "sdxl-style", "sdxl-vpred"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_planned_and_its_layers_are_those_of_the_true_network(name, base, pictures, tmp_path):
    chosen = preset(name, base, pictures, tmp_path / "run")
    found = planning.plan(chosen)
    assert found.images + found.held == 12 and 0 < found.parameters < 0.1 * found.full
    assert chosen.resolution == (512 if name.startswith("sd15") else 1024)
    assert chosen.warmup == chosen.steps // 20
    text = "\n".join([*planning.lines(found), *footprint.lines(footprint.estimate(chosen))])
    assert re.search(r"memory   about \d+\.\d\d GiB", text) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "gib"), [("sdxl-8gb", 8), ("sdxl-12gb", 12), ("sdxl-character", 16), ("sdxl-style", 16), ("sdxl-vpred", 16)]
)
def test_a_preset_fits_the_card_it_is_for(name, gib, base, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(footprint.placement, "device", lambda wanted: torch.device("cuda"))
    chosen = preset(name, base, pictures, tmp_path / "run")
    assert footprint.estimate(chosen).total * fitting.SLACK + fitting.RESERVE["cuda"] < gib * GIB


@pytest.mark.parametrize("name", PRESETS)
def test_the_comments_of_a_preset_say_why(name):
    lines = (CONFIGS / f"{name}.toml").read_text().splitlines()
    assert lines[0].startswith("# ") and sum("#" in line for line in lines[1:]) >= 5
    assert "../models/" in "".join(lines) and models.BUILT_IN.keys() == {"emoji"}
