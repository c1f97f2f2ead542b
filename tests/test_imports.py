"""A deferred package: its submodules come at once, its own code when somebody asks for its names; and imports without a compiler."""

import importlib
import inspect
import sys

import pytest

from sdlora import imports


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of a package whose __init__ imports a heavy submodule, beside a light one."""
    folder = tmp_path / "outer_of_test" / "inner"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("from .heavy import Heavy\nfrom .light import Light\n")
    (folder / "heavy.py").write_text("from .light import Light\nclass Heavy(Light): pass\n")
    (folder / "light.py").write_text("class Light: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "outer_of_test.inner"
    for name in [name for name in sys.modules if name.startswith("outer_of_test")]:
        del sys.modules[name]


def test_a_submodule_is_imported_without_its_neighbours(package):
    imports.defer(package)
    light = importlib.import_module(f"{package}.light")
    assert light.Light and f"{package}.heavy" not in sys.modules


def test_who_asks_for_a_name_of_the_package_gets_it_and_the_same_classes(package):
    imports.defer(package)
    light = importlib.import_module(f"{package}.light")
    names: dict = {}
    exec(f"from {package} import Heavy\nimport outer_of_test\nfrom outer_of_test.inner import Light", names)
    assert issubclass(names["Heavy"], light.Light) and names["Light"] is light.Light
    assert names["outer_of_test"].inner is sys.modules[package]
    with pytest.raises(ImportError):
        exec(f"from {package} import Nothing")


def test_a_package_that_is_imported_already_or_is_not_there_stays_as_it_is(package):
    whole = importlib.import_module(package)
    imports.defer(package)
    assert sys.modules[package] is whole
    imports.defer("outer_of_test.missing")
    imports.defer("nowhere_of_test.inner")
    assert "outer_of_test.missing" not in sys.modules


def test_diffusers_still_has_the_package_that_is_deferred():
    imports.defer()
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    assert Transformer2DModel.__name__ == "Transformer2DModel"


def test_a_module_is_imported_as_if_there_were_no_compiler_and_its_classes_are_marked_later(package, tmp_path, monkeypatch):
    (tmp_path / "outer_of_test" / "compiler.py").write_text("seen = []\nallow_in_graph = seen.append\n")
    wish = "try:\n    from outer_of_test.compiler import allow_in_graph\nexcept ImportError:\n    allow_in_graph = None\n"
    (tmp_path / "outer_of_test" / "user.py").write_text(wish + "class Block: pass\n")
    monkeypatch.setattr(imports, "COMPILER", "outer_of_test.compiler")
    monkeypatch.setattr(imports, "MARKED", {"outer_of_test.user": ("Block", "Missing"), "outer_of_test.nowhere": ("Block",)})
    imports.uncompiled("outer_of_test.user")
    user = sys.modules["outer_of_test.user"]
    assert user.allow_in_graph is None and "outer_of_test.compiler" not in sys.modules
    imports.mark()
    assert sys.modules["outer_of_test.compiler"].seen == [user.Block]


def test_a_module_that_cannot_do_without_the_compiler_is_imported_with_it(package, tmp_path, monkeypatch):
    (tmp_path / "outer_of_test" / "compiler.py").write_text("here = True\n")
    (tmp_path / "outer_of_test" / "user.py").write_text("from outer_of_test.compiler import here\n")
    monkeypatch.setattr(imports, "COMPILER", "outer_of_test.compiler")
    imports.uncompiled("outer_of_test.user")
    assert importlib.import_module("outer_of_test.user").here


def test_the_classes_that_are_marked_for_the_compiler_are_those_that_diffusers_marks():
    for module, names in imports.MARKED.items():
        source = inspect.getsource(importlib.import_module(module))
        assert all(f"@maybe_allow_in_graph\nclass {name}(" in source for name in names)
