"""Two processes are one with twice the batch."""

import json
import os
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


def launch(processes: int, base: Path, pictures: Path, output: Path, *more: str) -> subprocess.CompletedProcess:
    """As `accelerate launch` does it on GPUs, by torchrun; on CPUs `accelerate launch` itself starts several only with MPI."""
    settings = {"images": pictures, "output": output, "base": base, "steps": 4, "rank": 2, "resolution": 32, "precision": "fp32"}
    settings |= {"save_every": 2, "samples.steps": 1, "samples.count": 1, "learning_rate": 1e-3, "clip": 0.05, "caption_dropout": 0.3}
    settings["optimizer.eps"] = 1e-4  # Adam divides by the gradient's size: where that is rounding alone, it would make it large
    words = [str(ROOT / "train" / "lora.py"), *(f"{key}={value}" for key, value in settings.items()), *more]
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run([sys.executable, *(how if processes > 1 else []), *words], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one_with_twice_the_batch(tiny_base, pictures, tmp_path):
    one = launch(1, tiny_base, pictures, tmp_path / "one", "batch_size=4", "accumulate=2")
    two = launch(2, tiny_base, pictures, tmp_path / "two", "batch_size=2", "accumulate=2")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    a, b = (files.read(tmp_path / name / "adapter.safetensors").layers for name in ("one", "two"))
    moved = max(update.b.abs().max().item() for update in a.values())
    assert moved > 1e-4
    for name in a:
        for field in ("a", "b"):
            torch.testing.assert_close(getattr(a[name], field), getattr(b[name], field), rtol=0, atol=0.02 * moved)
    lines = [[json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert [x["number"] for x in lines[1]] == [1, 2, 3, 4], "only one of them writes"
    np.testing.assert_allclose([x["loss"] for x in lines[0]], [x["loss"] for x in lines[1]], rtol=1e-4)
    np.testing.assert_allclose([x["grad_norm"] for x in lines[0]], [x["grad_norm"] for x in lines[1]], rtol=1e-3)
    assert two.stdout.count("adapter: ") == 1
    names = [sorted(str(p.relative_to(tmp_path / n)) for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("one", "two")]
    assert [name for name in names[0] if "cache" not in name] == [name for name in names[1] if "cache" not in name]
    # what is lost of the second half is made again, and to the same bytes, by as many processes
    whole = (tmp_path / "two" / "adapter.safetensors").read_bytes()
    (tmp_path / "two" / "adapter.safetensors").unlink()
    (tmp_path / "two" / "states" / "step-000004.pt").unlink()
    again = launch(2, tiny_base, pictures, tmp_path / "two", "batch_size=2", "accumulate=2")
    assert again.returncode == 0 and (tmp_path / "two" / "adapter.safetensors").read_bytes() == whole, again.stderr
    alone = launch(1, tiny_base, pictures, tmp_path / "two", "batch_size=2", "accumulate=2")
    assert alone.returncode == 2 and "the number of processes changed since the run" in alone.stderr
