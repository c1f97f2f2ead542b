"""Two processes are one with twice the batch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sdlora import apply, files
from sdlora.conditioning import Sizes
from sdlora.data import Cache, Encoded, encode, scan
from sdlora.data.encode import Row, View
from sdlora.training import TrainConfig, batches, loop, session
from sdlora.training.batches import Source
from sdlora.training.processes import World

ROOT = Path(__file__).parents[1]


def test_the_shares_of_a_batch_are_the_batch(tmp_path):
    config = TrainConfig(images=tmp_path, output=tmp_path, batch_size=6, caption_dropout=0.5, prior={"prompts": ("a",), "batch_size": 3})
    size = Sizes((64, 64), (0, 0), (64, 64))
    data = Encoded(tuple(Row(((View(torch.randn(4, 2, 2), size),),), (name,), name) for name in "abcde"))
    whole = batches.batches([Source("images", data, 6, 1.0), Source("prior", data, 3, 0.5)], config, 3, 1000)[0]
    parts = [World(rank, 2).share(whole) for rank in range(2)]
    assert [len(part.captions) for part in parts] == [5, 4]
    order = [i for rank in range(2) for i in range(rank, 9, 2)]
    for name in ("latents", "noise", "timesteps", "time_ids", "weights"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)[order])
    assert [c for part in parts for c in part.captions] == [whole.captions[i] for i in order]
    assert sum(part.weights.sum().item() for part in parts) == pytest.approx(1.5)
    assert World(0, 1).share(whole) is whole and World(9, 10).share(whole) is None


def test_processes_that_go_on_from_different_steps_are_found_out(monkeypatch):
    """As on two machines that do not share the output folder: one resumes what the other has never seen."""
    others = {"largest": 300, "smallest": 300}

    def reduced(ends, operation):
        assert operation == torch.distributed.ReduceOp.MAX
        ends.copy_(torch.maximum(ends, torch.tensor([others["largest"], -others["smallest"]])))

    monkeypatch.setattr(torch.distributed, "all_reduce", reduced)
    assert World(0, 2).same(300) and not World(0, 2).same(0) and not World(0, 2).same(301)
    assert World().same(7)


def test_the_gradients_of_the_shares_add_up_to_those_of_the_batch(components, pictures, tmp_path):
    settings = {"images": pictures, "output": tmp_path, "batch_size": 4, "accumulate": 2, "rank": 2, "resolution": 32, "precision": "fp32"}
    config = session.fitted(TrainConfig(**settings, caption_dropout=0.3).settled(), components)
    source = Source("images", encode(scan(pictures), components, 32, Cache()), 4, 1.0)
    try:
        run = session._run(config, components, [source], Cache(), {"base model": "b", "images": "i"})
        with torch.no_grad():
            for i, p in enumerate(run.parameters):
                p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))

        def gradient(worlds) -> torch.Tensor:
            for p in run.parameters:
                p.grad = None
            for batch in batches.batches(run.sources, config, 3, 1000):
                for world in worlds:
                    loop.batch_loss(run, world.share(batch)).backward()
            return torch.cat([p.grad.flatten() for p in run.parameters])

        whole = gradient([World()])
        parts = gradient([World(0, 2), World(1, 2)])
    finally:
        apply.eject(components.modules)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5 * whole.abs().max().item())


FAILING = """
import os, signal, sys
from sdlora import cli
from sdlora.errors import SdloraError
from sdlora.training import loop

plain, how = loop.batch_loss, os.environ["FAILS"]

def failing(run, batch):
    if os.environ["RANK"] == "1" and run.step == 2:
        if how == "error":
            raise SdloraError("found by the second")
        os.kill(*{"killed": (os.getpid(), signal.SIGKILL), "ctrl-c": (os.getppid(), signal.SIGINT)}[how])
    return plain(run, batch)

loop.batch_loss = failing
cli.program(["train", *sys.argv[1:]])
"""
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FSDP = ("accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--mixed_precision", "no")
FSDP += ("--main_process_port", "0")  # one that is free: by itself it takes 29500, whoever else does
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "no"}  # what its launcher says, which needs DeepSpeed itself
SETTINGS = {"steps": 4, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 2, "samples.steps": 1, "samples.count": 1}
SETTINGS |= {"learning_rate": 1e-3, "clip": 0.05, "caption_dropout": 0.3}
SETTINGS |= {"optimizer.eps": 1e-4}  # Adam divides by the gradient's size: where that is rounding alone, it would make it large


@pytest.fixture
def launch(tiny_base, pictures, tmp_path):
    """A function (how, output's name, settings) -> a training in one process, or in as many as `how` starts, with what a launcher has
    `told` them; `fails` in the second."""

    def start(how: tuple[str, ...], output: str, *more: str, fails: str = "", told: dict | None = None) -> subprocess.CompletedProcess:
        settings = SETTINGS | {"images": pictures, "output": tmp_path / output, "base": tiny_base}
        driver = tmp_path / "failing.py"
        driver.write_text(FAILING)
        words = [str(driver if fails else ROOT / "train" / "lora.py"), *(f"{key}={value}" for key, value in settings.items()), *more]
        environment = (
            os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "FAILS": fails} | (told or {})
        )
        return subprocess.run([sys.executable, *(["-m"] if how else []), *how, *words], env=environment, capture_output=True, text=True)

    return start


def assert_same(one: Path, two: Path) -> None:
    """Adapters that are one but for rounding: 0.009 of the largest movement was measured."""
    a, b = files.read(one).layers, files.read(two).layers
    moved = max(update.b.abs().max().item() for update in a.values())
    assert moved > 1e-4 and a.keys() == b.keys()
    for name in a:
        for field in ("a", "b"):
            torch.testing.assert_close(getattr(a[name], field), getattr(b[name], field), rtol=0, atol=0.05 * moved)


def lose_second_half(run: Path) -> bytes:
    """The adapter, which is then taken away with the last state."""
    whole = (run / "adapter.safetensors").read_bytes()
    (run / "adapter.safetensors").unlink()
    (run / "states" / "step-000004.pt").unlink()
    return whole


@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one_with_twice_the_batch(launch, tmp_path):
    one = launch((), "one", "batch_size=4", "accumulate=2")
    two = launch(TORCHRUN, "two", "batch_size=2", "accumulate=2")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert_same(tmp_path / "one" / "adapter.safetensors", tmp_path / "two" / "adapter.safetensors")
    lines = [[json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert [x["number"] for x in lines[1]] == [1, 2, 3, 4], "only one of them writes"
    np.testing.assert_allclose([x["loss"] for x in lines[0]], [x["loss"] for x in lines[1]], rtol=1e-4)
    np.testing.assert_allclose([x["grad_norm"] for x in lines[0]], [x["grad_norm"] for x in lines[1]], rtol=1e-3)
    assert two.stdout.count("adapter: ") == 1
    names = [sorted(str(p.relative_to(tmp_path / n)) for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("one", "two")]
    assert [name for name in names[0] if "cache" not in name] == [name for name in names[1] if "cache" not in name]
    # the second half is lost, and made again three times in vain: whatever ends one process ends both, at once, and one says why
    whole = lose_second_half(tmp_path / "two")
    said = {
        "error": r"error: found by the second; the last good state is .*step-000002\.pt$",
        "killed": r"error: one of the 2 processes was killed, or crashed; the same command goes on from what is saved",
        "ctrl-c": r"stopped after step 3 of 4; the same command goes on from there$",
    }
    for fails, words in said.items():
        found = launch(TORCHRUN, "two", "batch_size=2", "accumulate=2", fails=fails)
        assert found.returncode != 0
        assert len(re.findall("exitcode +: -9", found.stderr)) == (fails == "killed"), "the launcher lost its patience after 30 seconds"
        assert len(re.findall(words, found.stderr, re.MULTILINE)) == len(re.findall("^(?:error|stopped)", found.stderr, re.MULTILINE)) == 1
        assert "[rank" not in found.stderr, "a traceback of ours"
        assert not list((tmp_path / "two").rglob(".*.tmp.*")) and not (tmp_path / "two" / "adapter.safetensors").exists()
    assert (tmp_path / "two" / "states" / "step-000003.pt").exists()
    again = launch(TORCHRUN, "two", "batch_size=2", "accumulate=2", told=DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"})
    assert again.returncode == 0 and (tmp_path / "two" / "adapter.safetensors").read_bytes() == whole, again.stderr
    assert again.stderr.count("ZeRO 2: of an adapter's optimiser state and gradients are a few MB and whole in each process") == 1
    alone = launch((), "two", "batch_size=2", "accumulate=2")
    assert alone.returncode == 2 and "the number of processes changed since the run" in alone.stderr


@pytest.mark.slow
def test_fsdp_gives_the_adapter_of_one_process_and_goes_on_exactly_and_as_zero_3(launch, tmp_path):
    """With all that has a part in it: a text encoder that learns, checkpoints of activations, an average, validation, samples."""
    settings = ['targets=["attention","text_attention"]', "clip_skip=2", "gradient_checkpointing=true", "ema.decay=0.9"]
    settings += ["validation.fraction=0.3", "validation.timesteps=2"]
    one = launch((), "one", "batch_size=4", *settings)
    two = launch(FSDP, "two", "batch_size=2", *settings)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert_same(tmp_path / "one" / "adapter.safetensors", tmp_path / "two" / "adapter.safetensors")
    scores = [[json.loads(line) for line in (tmp_path / n / "validation.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert [score["step"] for score in scores[1]] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([score["loss"] for score in scores[0]], [score["loss"] for score in scores[1]], rtol=1e-4)
    assert (tmp_path / "two" / "samples" / "grid.png").exists()
    whole = lose_second_half(tmp_path / "two")
    # made again as ZeRO 3, which is the same: half by one and half by the other is all by one
    zero = launch(TORCHRUN, "two", "batch_size=2", *settings, told=DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})
    assert zero.returncode == 0 and (tmp_path / "two" / "adapter.safetensors").read_bytes() == whole, zero.stderr
    assert zero.stderr.count("ZeRO 3: the frozen base is split among the processes") == 1
