"""What goes wrong while pictures are drawn: too little memory, foreseen or met, and numbers that are none any more."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sdlora.errors import SdloraError
from sdlora.generation.passes import Side
from sdlora.generation.request import Request
from sdlora.models import Components

MEMORY = Path("/proc/meminfo")  # Linux alone has it; elsewhere the CPU's memory is not foreseen
GROUP = Path("/sys/fs/cgroup")
SHARE = 4  # of the free memory, one part is for copies of weights
ASSUMED = 2**32  # bytes that are taken to be free where that cannot be known


ALIVE = 26  # tensors of a level's width that are alive where the outermost level with attention is widest; measured: 26 to 31


def check(components: Components, side: Side, device: torch.device, rows: int = 1) -> None:
    """SdloraError for pictures of (height, width) pixels that cannot be drawn in the memory that `device` has left.

    rows  pictures that the U-Net sees in one call, those without a prompt included; the VAE decodes them one by one
    """
    free = unused(device)
    if free is None:
        return
    found, end = f"{side[1]} × {side[0]} pixels", f"and {_gib(free)} are free on {device}; draw it smaller"
    if (least := decoding(components, side)) > free:
        tiling = "" if components.vae.use_tiling else ", or set tiling"
        raise SdloraError(f"a picture of {found} takes at least {_gib(least)} to decode, {end}{tiling}")
    if (least := denoising(components, side, rows)) > free:
        several = ", or with a smaller batch" if rows > 2 else ""
        raise SdloraError(f"the U-Net takes {_gib(least)} for {rows} × {found} at once, {end}{several}")


def denoising(components: Components, side: Side, rows: int) -> int:
    """Bytes that are alive at once in a call of the U-Net, but for its weights.

    Most are where the feed-forward network of its outermost attention makes 8 of each width: with the skips about 26 tensors of that
    level's width for Stable Diffusion 1.x, 28 for emoji, 31 for SDXL, whatever the size. Attention itself keeps no table of all pairs.
    """
    shape = components.unet.config
    level = next((i for i, kind in enumerate(shape.down_block_types) if "Attn" in kind), 0)
    positions = (side[0] // components.factor) * (side[1] // components.factor) // 4**level
    return ALIVE * shape.block_out_channels[level] * positions * rows * components.dtype.itemsize


def room(device: torch.device, always: bool = False) -> int:
    """Bytes that copies of weights may take while pictures are drawn (sdlora.lean, apply.folding): a quarter of what the CPU has free;
    on other devices, where nothing is copied, none. `always`: on the CPU any number."""
    if device.type != "cpu":
        return 0
    if always:
        return sys.maxsize
    free = unused(device)
    return (ASSUMED if free is None else free) // SHARE


def decoding(components: Components, side: Side) -> int:
    """Bytes that are alive at once in the VAE's decoder, at the least.

    Where it is widest at full size, three tensors of the last but one level's channels: docs/memory.md counts the same for
    Stable Diffusion, 3.00 GiB for 1024² in fp32.
    """
    vae = components.vae
    channels = vae.config.block_out_channels
    height, width = (min(length, vae.tile_sample_min_size) if vae.use_tiling else length for length in side)
    pixels = side[0] * side[1] * 3 * 4  # the picture itself, in fp32
    return 3 * channels[min(1, len(channels) - 1)] * height * width * vae.dtype.itemsize + pixels


def unused(device: torch.device) -> int | None:
    """Bytes that can still be had on `device`, as far as that can be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not MEMORY.is_file():
        return None
    fields = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (_number(GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free
    return min(free, limit - used + _reclaimable())


@contextmanager
def enough(components: Components) -> Iterator[None]:
    """Inside, an allocation that fails is one line."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)):
            raise
        remedy = "a smaller batch, smaller pictures, less precision, tiling or offload"
        raise SdloraError(f"there is not enough memory on {components.device} to draw this; try {remedy}") from error


class Finite:
    """Counts for each picture of a batch the steps that it came through as numbers, without waiting for the device."""

    def __init__(self, pictures: int, device: torch.device):
        self.steps = torch.zeros(pictures, dtype=torch.long, device=device)
        self.whole = torch.ones(pictures, dtype=torch.bool, device=device)  # pixels that were NaN are numbers in a second pass again

    def see(self, x: Tensor) -> None:
        self.whole &= torch.isfinite(x).flatten(1).all(1)
        self.steps += self.whole

    def errors(self, components: Components, requests: list[Request], total: int) -> dict[int, SdloraError]:
        """For the pictures that came through fewer than `total` steps."""
        return {
            i: nan(components, requests[i], f"at step {done + 1} of {total}") for i, done in enumerate(self.steps.tolist()) if done < total
        }


def nan(components: Components, request: Request, where: str) -> SdloraError:
    remedy = "bf16 or fp32" if components.dtype == torch.float16 else "weaker adapters or less guidance"
    return SdloraError(f"the picture of {request.prompt!r} with seed {request.seed} turned into NaN {where}; try {remedy}")


def _reclaimable() -> int:
    """Bytes of the group that are files read lately, which make room for anything else."""
    lines = (GROUP / "memory.stat").read_text().splitlines() if (GROUP / "memory.stat").is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
