"""Peak memory of one contender's steps, in a process of its own: `python -m sdlora.benchmark.training.peak NAME SETTINGS.json`."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from sdlora import hardware
from sdlora.benchmark import memory
from sdlora.benchmark.training.config import TrainingBenchmarkConfig
from sdlora.benchmark.training.contenders import ready
from sdlora.errors import SdloraError


@dataclass(frozen=True)
class Peak:
    """In bytes, while steps are made, set-up and what it has freed left out; None where the system does not tell."""

    contender: str
    device: int | None  # of PyTorch's allocator on CUDA, else as `host`
    host: int | None  # of the process, libraries included


def measure(name: str, config: TrainingBenchmarkConfig) -> Peak:
    with tempfile.TemporaryDirectory(prefix="sdlora-benchmark-") as folder:
        file = Path(folder) / "settings.json"
        file.write_text(config.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", __name__, name, str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SdloraError(f"measuring the memory of {name} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return Peak(name, **json.loads(done.stdout.splitlines()[-1]))


def main(name: str, file: Path) -> None:
    config = TrainingBenchmarkConfig.model_validate_json(file.read_text(encoding="utf-8"))
    if config.threads:
        torch.set_num_threads(config.threads)
    where, host = hardware.device(config.device), torch.device("cpu")
    with ready(name, config) as go:
        go(1)
        memory.release()
        known = {kind: hardware.forget_peak(torch.device(kind)) for kind in {where.type, host.type}}
        go(config.steps)
        peaks = {kind: hardware.peak(torch.device(kind)) if here else None for kind, here in known.items()}
    print(json.dumps({"device": peaks[where.type], "host": peaks[host.type]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
