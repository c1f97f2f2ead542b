"""The normal numbers of PyTorch's CUDA generator, computed on the CPU: Philox 4x32-10 and Box–Muller.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". On the GPU every number has a thread of its own, which is its
counter, and each call of torch.randn moves an offset on by one. That holds up to as many numbers as the GPU can have threads at
once (SMs × 1024 … 2048: a picture of 512 px takes 16,384); beyond, the GPU's numbers depend on its model.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
UNIT = float(np.float32(2.3283064e-10))  # 2⁻³², as cuRAND writes it
TURN = float(np.float32(2.3283064e-10 * 6.2831855))  # 2π · 2⁻³²


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox 4x32-10 of the counters (4, n) uint32, lowest word first; (4, n) uint32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        one, two = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # uint64
        c0, c1, c2, c3 = _high(two) ^ c1 ^ np.uint32(k0), _low(two), _high(one) ^ c3 ^ np.uint32(k1), _low(one)
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def normal(seed: int, shape: tuple[int, ...], offset: int = 0) -> Tensor:
    """What the call number `offset` of torch.randn(shape, device="cuda") gives after manual_seed(seed); fp32 on the CPU.

    Computed in fp64 and rounded once, where the GPU has fp32 and its fast sine: equal to about 1e-6, not to the bit.
    """
    count = int(np.prod(shape))
    counter = np.zeros((4, count), np.uint32)
    counter[0], counter[2] = offset, np.arange(count)
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.float64)
    radius = np.sqrt(-2 * np.log(words[0] * UNIT + UNIT / 2))
    return torch.from_numpy((radius * np.sin(words[1] * TURN + TURN / 2)).astype(np.float32)).reshape(shape)


def stream(seed: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """One call after the other."""
    offset = 0
    while True:
        yield normal(seed, shape, offset)
        offset += 1


def _high(product: np.ndarray) -> np.ndarray:
    return (product >> np.uint64(32)).astype(np.uint32)


def _low(product: np.ndarray) -> np.ndarray:
    return product.astype(np.uint32)
