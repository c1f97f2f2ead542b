"""LoCon in Tucker form, y = B · M · A x with 1 × 1 convolutions A and B around a small M (r, r, kh, kw), as the plain LoCon that it is.

LyCORIS (Yeh et al. 2023, arXiv:2309.14859, sec. 3.1, use_tucker): ΔW[o, i, h, w] = α/r Σ B[o, p] M[p, q, h, w] A[q, i], which is the
LoCon with A'[p, i, h, w] = Σ M[p, q, h, w] A[q, i] and the same B, α and r.
"""

import torch
from torch import Tensor

from sdlora.errors import SdloraError


def down(name: str, a: Tensor, mid: Tensor) -> Tensor:
    """A' (r, in, kh, kw) of A (r, in, 1, 1) and M (r, r, kh, kw): fp64, in which products of fp32 numbers are exact."""
    whole = a.dim() == mid.dim() == 4 and tuple(a.shape[2:]) == (1, 1) and mid.shape[1] == a.shape[0]
    if not (whole and a.is_floating_point() and mid.is_floating_point()):
        raise SdloraError(f"{name} is no LoCon in Tucker form: down {tuple(a.shape)}, mid {tuple(mid.shape)}")
    return torch.einsum("pqhw,qi->pihw", mid.double(), a.flatten(1).double())
