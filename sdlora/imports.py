"""diffusers' U-Net without what it imports and no base model here needs: all its transformers, its hooks, SciPy's statistics."""

import importlib.util
import sys
from types import ModuleType
from typing import Any

PACKAGE = "diffusers.models.transformers"
DEFERRED = (PACKAGE, "diffusers.hooks", "scipy.stats")


def lighten() -> None:
    """Before diffusers' networks are imported."""
    for package in DEFERRED:
        defer(package)


class Deferred(ModuleType):
    """A package whose submodules can be imported at once, and whose own code runs when one of its names is first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or vars(self).get("_begun"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self._begun = True
        assert self.__spec__ is not None and self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer(package: str = PACKAGE) -> None:
    """Make `package` a Deferred one, unless it is imported already or is not there (another version of diffusers).

    U-Net blocks need two of its modules; its __init__ would import some seventy more. Whoever wants one of those still gets it.
    """
    if package in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return
    if spec is None or spec.submodule_search_locations is None or spec.loader is None:
        return
    module = Deferred(package)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    module.__package__, module.__path__ = package, list(spec.submodule_search_locations)
    sys.modules[package] = module
    parent, _, name = package.rpartition(".")
    setattr(sys.modules[parent], name, module)
