"""The noise a picture starts from: drawn on the CPU in fp32 from its own seed, whatever the device, precision and batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def initial(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal, (len(seeds), *shape), fp32 on the CPU: row i depends on seeds[i] alone.

    These are the numbers of AUTOMATIC1111 with "CPU" as its source, and of diffusers with one CPU generator per picture in fp32.
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds])
