"""What a time depends on besides the code: versions, processor, threads, flags, load."""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from sdlora import __version__

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "accelerate", "numpy", "scipy", "peft")


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
        "clock_mhz": clock(device),
        "commit": commit(),
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
        found["attention_kernels"] = kernels()
        found["gpu_state"] = gpu_state()
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


def attention(unet: Any) -> str:
    """What computes the attention of a U-Net: its processors' classes."""
    return ", ".join(sorted({type(one).__name__ for one in unet.attn_processors.values()}))


def load() -> float | None:
    """Processes that were running or waiting over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def clock(device: torch.device) -> float | None:
    """MHz: of the GPU's multiprocessors, else the mean over the cores of the processor; None where the system does not tell."""
    if device.type == "cuda":
        try:
            return float(torch.cuda.clock_rate(device))
        except (RuntimeError, ImportError, OSError):
            return None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    found = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return round(sum(found) / len(found), 1) if found else None


def kernels() -> str:
    """Which implementations of attention PyTorch may choose from on CUDA."""
    here = torch.backends.cuda
    on = {"flash": here.flash_sdp_enabled(), "memory efficient": here.mem_efficient_sdp_enabled(), "math": here.math_sdp_enabled()}
    return ", ".join(name for name, enabled in on.items() if enabled)


def gpu_state() -> str | None:
    """Clocks, temperature and power, as nvidia-smi tells them."""
    query = "clocks.sm,clocks.mem,temperature.gpu,power.draw,power.limit"
    return _said(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])


def commit() -> str | None:
    """Of the source tree that runs, with a + if it has changes; None where it is an installed package."""
    here = str(Path(__file__).parent)
    name = _said(["git", "-C", here, "rev-parse", "--short=12", "HEAD"])
    return name and name + ("+" if _said(["git", "-C", here, "status", "--porcelain", "--untracked-files=no"]) else "")


def _said(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
