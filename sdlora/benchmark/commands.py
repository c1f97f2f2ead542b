"""Whole commands under the clock, each in a process of its own: from the shell to the end of the process."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from sdlora.benchmark.bases import RANDOM
from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.handling import Handling
from sdlora.benchmark.measure import untagged
from sdlora.benchmark.names import FIRST, HELP
from sdlora.errors import SdloraError

TIMES = 5  # after one that is not timed, in which files come from the disk


def measure(config: BenchmarkConfig) -> tuple[Handling, ...]:
    """Those that `config.seconds` names; a base of random weights, which no command knows, has no first picture."""
    with tempfile.TemporaryDirectory(prefix="sdlora-benchmark-") as folder:
        words = {HELP: ["--help"], FIRST: first(config, Path(folder))}
        asked = [name for name in words if name in config.seconds and not (name == FIRST and config.base.startswith(RANDOM))]
        rounds = [{name: seconds(words[name], config) for name in asked} for _ in range(TIMES + 1)][1:] if asked else []
    return tuple(Handling(name, tuple(one[name] for one in rounds)) for name in asked)


def first(config: BenchmarkConfig, folder: Path) -> list[str]:
    settings = {"base": config.base, "steps": config.steps, "guidance": config.guidance, "seed": config.seeds[0]}
    settings |= {"device": config.device, "precision": config.precision, "output": folder}
    sizes = {name: side for name in ("width", "height") if (side := getattr(config, name)) is not None}
    return ["generate", untagged(config.prompts[0], config.strength), *(f"--{name}={value}" for name, value in (settings | sizes).items())]


def seconds(words: Sequence[str], config: BenchmarkConfig) -> float:
    """Of one process; SdloraError with its last line if it fails."""
    threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
    command = [sys.executable, "-m", "sdlora.cli", *words]
    begun = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    taken = perf_counter() - begun
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SdloraError(f"`sdlora {words[0]}`, which was to be timed, failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return taken
