"""The script of the full-size proof, held up on narrow bases: every step of it runs, and its comparison can fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train" / "full_size.py"), *map(str, words)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


@pytest.mark.slow
def test_the_proof_of_stock_diffusers_and_peft_holds_on_a_narrow_sdxl_and_can_fail(bases, tmp_path):
    from safetensors.torch import load_file, save_file

    settings = ("check", bases("sdxl"), "--work", tmp_path, "--small", 64, "--precision", "fp32")
    done = run(*settings, "--step", "train-small", "--step", "ours", "--step", "theirs")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("peak") == 3 and done.stdout.count("of the largest value apart") == 2
    said = load_file(tmp_path / "ours.fp32.safetensors")
    save_file({name: tensor * 1.001 for name, tensor in said.items()}, tmp_path / "ours.fp32.safetensors")
    wrong = run(*settings, "--step", "theirs")
    assert wrong.returncode and "not the same as stock diffusers" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind, encoders", [("sd1", 1), ("sdxl", 2)])
def test_the_proof_of_folder_and_single_file_holds_on_a_narrow_base_and_can_fail(bases, tmp_path, capsys, kind, encoders):
    from safetensors.torch import load_file, save_file

    import full_size

    def check(*steps):
        for step in steps:
            full_size.check(bases(kind), tmp_path, step, 64, "fp32")
        return capsys.readouterr().out

    said = check("single", "back", "tensors", "say", "say-single")
    assert said.count("bit-equal there and back") == encoders + 2
    assert said.count("in diffusers' reading of the single file") == 2
    assert "outputs bit-equal" in said
    stored = load_file(tmp_path / "single.safetensors")
    key = next(key for key in stored if "input_blocks" in key and key.endswith("to_k.weight"))
    save_file(stored | {key: stored[key] * 1.1}, tmp_path / "changed.safetensors")
    (tmp_path / "changed.safetensors").replace(tmp_path / "single.safetensors")
    with pytest.raises(SystemExit, match="unet: 1 tensors differ"):
        check("tensors")


@pytest.mark.parametrize("kind, parameters", [("sd1", 859_520_964), ("sdxl", 2_567_463_684)])
def test_the_full_size_u_nets_have_as_many_parameters_as_the_real_ones(kind, parameters):
    import torch

    import full_size

    with torch.device("meta"):
        _, unet = full_size.built("UNet2DConditionModel", full_size.configuration(kind, "unet"))
    assert sum(p.numel() for p in unet.parameters()) == parameters
