"""k-diffusion's own `sampling` and `external` modules, without the package's __init__, which wants torchvision and more."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch


def _append_dims(x: torch.Tensor, dimensions: int) -> torch.Tensor:
    """The one function that they take from k_diffusion.utils, which cannot be imported either."""
    return x[(...,) + (None,) * (dimensions - x.ndim)]


def load() -> tuple[ModuleType, ModuleType]:
    """(sampling, external)"""
    specification = importlib.util.find_spec("k_diffusion")
    if specification is None:
        pytest.skip("without k-diffusion: pip install --no-deps -c constraints.txt k-diffusion", allow_module_level=True)
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(specification.submodule_search_locations or ())
    utils.append_dims = _append_dims  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")


sampling, external = load()
