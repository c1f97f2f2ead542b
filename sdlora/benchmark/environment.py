"""What a time depends on besides the code: versions, processor, threads, flags, load."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from sdlora import __version__

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "accelerate", "numpy", "scipy")


def record(device: torch.device) -> dict[str, Any]:
    """Plain numbers and strings, ready for JSON."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "device": str(device),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "load": load(),
        "versions": {"sdlora": __version__} | {name: version(name) for name in PACKAGES},
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("OMP_", "MKL_", "KMP_", "CUBLAS_", "PYTORCH_"))},
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.is_available(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
        found["cudnn_benchmark"] = torch.backends.cudnn.benchmark
        found["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return found


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def cores() -> int:
    """Those this process may run on, not those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Processes that were running or waiting over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
