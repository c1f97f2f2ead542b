"""Libraries without what they import and no base model here needs, and without the collector of cycles while they are imported."""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from types import MappingProxyType, ModuleType
from typing import Any

NONE: Mapping[str, str] = MappingProxyType({})
# package -> its names that are wanted at once, and the submodules that they are from. The class of a U-Net has to come from
# diffusers, of a text encoder from transformers; of what these two packages import on the way to them these are the parts
# that can wait: neighbours of the same package, SciPy's statistics and optimisers.
DEFERRED: dict[str, Mapping[str, str]] = {
    "transformers.models": NONE,  # a list of all of them, from the text of 1,600 files
    "diffusers.models.autoencoders": NONE,
    "diffusers.models.transformers": NONE,
    "diffusers.models.unets": NONE,
    "diffusers.hooks": NONE,
    "scipy.integrate": NONE,
    "scipy.optimize": {"linear_sum_assignment": "_lsap"},
    "scipy.stats": NONE,
}


def lighten() -> None:
    """Before the networks of diffusers and transformers are imported."""
    for package, names in DEFERRED.items():
        defer(package, names)


class Deferred(ModuleType):
    """A package whose submodules can be imported at once, and whose own code runs when one of its names is first asked for."""

    def __getattr__(self, name: str) -> Any:
        own: Waiting = vars(self)["_waiting"]
        if name.startswith("__") and name != "__all__":  # the import system asks for many a name that a package need not have
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if not own.begun and name in own.parts:
            try:
                return getattr(importlib.import_module(f"{self.__name__}.{own.parts[name]}"), name)
            except (ImportError, AttributeError):
                pass  # in another version it is elsewhere
        own.run(self)
        whole = sys.modules.get(self.__name__, self)  # some packages put another object in their place
        return ModuleType.__getattribute__(self, name) if whole is self else getattr(whole, name)


class Waiting:
    """The code of a Deferred package."""

    def __init__(self, parts: Mapping[str, str]):
        self.parts, self.begun, self.lock = parts, False, RLock()

    def run(self, module: Deferred) -> None:
        """Once. Another thread waits; what the code imports may ask the half-made package for a name that it has not yet."""
        with self.lock:
            if self.begun:
                return
            self.begun = True
            assert module.__spec__ is not None and module.__spec__.loader is not None
            try:
                module.__spec__.loader.exec_module(module)
            except BaseException:
                self.begun = False
                raise
        if (whole := sys.modules.get(module.__name__)) is not None:
            _bind(whole, module.__name__)


def defer(package: str, parts: Mapping[str, str] = NONE) -> None:
    """Make `package` a Deferred one, unless it is imported already or is not there (not installed, or of another version).

    parts  its names that a submodule has already
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
    vars(module)["_waiting"] = Waiting(parts)
    sys.modules[package] = module
    _bind(module, package)


def _bind(module: ModuleType, name: str) -> None:
    """As an import does."""
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, module)


@contextmanager
def unswept() -> Iterator[None]:
    """Inside, Python looks for no cycles of dead objects. What is imported stays; looking through all of it again and again, as it grows,
    is a quarter of the time that importing takes."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
