"""A deferred package: its submodules come at once, its own code when somebody asks for one of its names."""

import gc
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


def test_a_star_takes_all_the_names_of_a_package(package, tmp_path):
    with open(tmp_path / "outer_of_test" / "inner" / "__init__.py", "a") as code:
        code.write("__all__ = ['Heavy']\n")
    imports.defer(package)
    names: dict = {}
    exec(f"from {package} import *", names)
    assert names["Heavy"].__name__ == "Heavy" and "Light" not in names


def test_a_name_that_a_submodule_has_already_comes_from_there(package):
    imports.defer(package, {"Light": "light", "Heavy": "nowhere"})
    names: dict = {}
    exec(f"from {package} import Light", names)
    assert names["Light"].__module__ == f"{package}.light" and f"{package}.heavy" not in sys.modules
    exec(f"from {package} import Heavy", names)  # in another version a name is elsewhere: the whole package has it
    assert issubclass(names["Heavy"], names["Light"])


def test_a_package_that_puts_another_object_in_its_place_is_that_object(package, tmp_path):
    code = "import sys, types\nsys.modules[__name__] = types.SimpleNamespace(Heavy=7, __path__=__path__, __spec__=__spec__)\n"
    (tmp_path / "outer_of_test" / "inner" / "__init__.py").write_text(code)
    imports.defer(package)
    held = sys.modules[package]
    assert held.Heavy == 7 and held.Heavy == 7
    assert sys.modules[package] is not held and sys.modules["outer_of_test"].inner is sys.modules[package]


def test_a_package_whose_code_fails_says_so_each_time(package, tmp_path):
    (tmp_path / "outer_of_test" / "inner" / "__init__.py").write_text("raise ImportError('no ground')\n")
    imports.defer(package)
    for _ in range(2):
        with pytest.raises(ImportError, match="no ground"):
            _ = sys.modules[package].Heavy


def test_the_collector_rests_inside_and_is_afterwards_as_it_was():
    assert gc.isenabled()
    with imports.unswept():
        assert not gc.isenabled()
        with imports.unswept():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), imports.unswept():
        raise KeyError
    assert gc.isenabled()


def run(program: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_picture_needs_none_of_the_heavy_neighbours_of_its_networks(tmp_path):
    spared = (
        "diffusers.hooks.first_block_cache",
        "diffusers.models.autoencoders.autoencoder_dc",
        "diffusers.models.transformers.transformer_flux",
        "diffusers.models.unets.unet_1d",
        "diffusers.pipelines.stable_diffusion",
        "matplotlib",
        "scipy.integrate._quadpack_py",
        "scipy.ndimage",
        "scipy.optimize._optimize",
        "scipy.stats._stats_py",
        "sdlora.benchmark",
        "sdlora.data",
        "sdlora.training",
    )
    program = f"""
import sys
from sdlora.drawing import work
from sdlora import generation, models
from sdlora.checkpoints import build
models.skeleton("emoji")
assert "diffusers.models.unets.unet_2d_condition" in sys.modules and "transformers.models.clip.modeling_clip" in sys.modules
found = sorted(sys.modules.keys() & set({spared}))
assert not found, found
assert type(sys.modules["transformers.models"]).__name__ == "Deferred", "its list of all models was made"
"""
    run(program, tmp_path)


def test_whoever_asks_for_what_was_put_off_has_it(tmp_path):
    program = """
from sdlora import models
models.skeleton("emoji")
import scipy.stats, scipy.optimize
from scipy import integrate
assert integrate.quad(lambda x: x, 0, 2)[0] == 2
from diffusers.hooks import FirstBlockCacheConfig
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, UNet1DModel
from diffusers.models.transformers import Transformer2DModel
from diffusers.models.unets import UNet2DModel
import transformers, transformers.models
from transformers.models import bert
from transformers import BertConfig
assert bert.BertConfig is BertConfig and transformers.models.bert is bert
assert scipy.stats.beta.ppf(0.5, 1, 1) == 0.5
assert scipy.optimize.linear_sum_assignment([[1, 2], [0, 9]])[1].tolist() == [1, 0]
assert abs(scipy.optimize.brentq(lambda x: x - 3, 0, 9) - 3) < 1e-9
EulerDiscreteScheduler(use_beta_sigmas=True).set_timesteps(3)
assert UNet2DModel.__name__ and UNet1DModel.__name__ and AutoencoderTiny.__name__ and Transformer2DModel.__name__
"""
    run(program, tmp_path)
