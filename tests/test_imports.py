"""A deferred package: its submodules come at once, its own code when somebody asks for one of its names."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdlora import imports

ROOT = Path(__file__).parents[1]


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


def test_a_base_is_loaded_without_scipy_s_statistics_and_whoever_asks_for_them_has_them(tmp_path):
    program = (
        "import sys\nfrom sdlora import models\nmodels.skeleton('emoji')\n"
        "assert 'scipy.stats._stats_py' not in sys.modules and 'diffusers.hooks.first_block_cache' not in sys.modules\n"
        "import scipy.stats\nfrom diffusers.hooks import FirstBlockCacheConfig\nfrom diffusers import EulerDiscreteScheduler\n"
        "assert scipy.stats.beta.ppf(0.5, 1, 1) == 0.5 and 'diffusers.hooks.first_block_cache' in sys.modules\n"
        "EulerDiscreteScheduler(use_beta_sigmas=True).set_timesteps(3)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
