"""A tiny random base model in diffusers' layout, made with the networks and the tokenizer of the embedded base's recipe."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import folders
import hypothesis
import numpy as np
import pytest
import torch
from untouched import Shared, changed_settings, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may reach for a network
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "WORLD_SIZE", "RANK"):
    os.environ.pop(name, None)  # what is printed has one width and no colours, and nobody has launched the tests
# the same examples on every machine, however slow it is
hypothesis.settings.register_profile(
    "laws", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("laws")
ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "train"))  # the recipe's modules, as `python train/base.py` sees them


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is written into the user's cache folder."""
    os.environ["SDLORA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def untouched(request: pytest.FixtureRequest, shared: Shared) -> Iterator[None]:
    """Every test begins at the same global random numbers, and leaves the process and the shared bases as it found them."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = settings()
    yield
    if "components" in request.fixturenames:
        shared.used.add("tiny")
    found = changed_settings(before) + shared.traces()
    if found:
        pytest.fail(f"{request.node.name} leaves behind: " + "; ".join(found[:9]), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def untouched_numbers(request: pytest.FixtureRequest, shared: Shared) -> Iterator[None]:
    """No file of tests leaves other numbers in a shared base, not even by ways that PyTorch does not count."""
    yield
    found = shared.traces(every_number=True)
    shared.used.clear()
    if found:
        pytest.fail(f"{request.node.name} leaves behind: " + "; ".join(found[:9]), pytrace=False)


@pytest.fixture(scope="session")
def shared() -> Shared:
    return Shared()


@pytest.fixture
def aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes can be imported, if `pip install --target .venv/aside --no-deps bitsandbytes` was done. It lies beside the
    environment and not in it: where PEFT sees it, every process that imports diffusers pays 2.8 s for it."""
    monkeypatch.syspath_prepend(Path(sys.prefix) / "aside")


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch):
    """A function (module of a command, its name) -> a function: command-line words -> what was printed.

    Errors of the user's pass through, as they do to the real CLI.
    """
    import typer
    from typer.testing import CliRunner

    from sdlora.errors import SdloraError

    monkeypatch.setenv("COLUMNS", "220")

    def of(command, name: str):
        app = typer.Typer()
        command.register(app)
        app.callback()(lambda: None)

        def call(*words: object) -> str:
            result = CliRunner().invoke(app, [str(word) for word in (name, *words)])
            if isinstance(result.exception, SdloraError):
                raise result.exception
            assert result.exit_code == 0, result.output
            return result.output

        return call

    return of


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that StableDiffusionPipeline.from_pretrained reads; every weight random and none zero."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def components(tiny_base: Path, shared: Shared):
    """`tiny_base`, loaded. Shared: a test that puts something on it takes it off again."""
    from sdlora import models

    return shared.add("tiny", models.load(tiny_base))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory):
    """A function kind -> folder of a narrow base of the true topology: "sd1", "sd2", "sd2_v" or "sdxl", each made once."""
    from functools import cache

    from bases import write

    return cache(lambda kind: write(tmp_path_factory.mktemp(kind) / kind, kind))


@pytest.fixture(scope="session")
def loaded(bases, shared: Shared):
    """A function kind -> the Components of bases(kind). Shared: a test that puts something on it takes it off again."""
    from functools import cache

    from sdlora import models

    known = cache(lambda kind: shared.add(kind, models.load(bases(kind))))

    def load(kind: str):
        shared.used.add(kind)
        return known(kind)

    return load


def write_base(folder: Path, seed: int = 0) -> Path:
    from diffusers import DDIMScheduler

    from bases import enliven, save, vocabulary
    from emoji import networks, tokenizer

    words = tokenizer.load(vocabulary(folder.parent / "vocabulary"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, vae = networks.unet(), networks.vae()
        text_encoder = networks.text_encoder(len(words), words.bos_token_id, words.eos_token_id)
        for module in (unet, vae, text_encoder):
            enliven(module)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": words, "scheduler": scheduler}
    return save(folder, "StableDiffusionPipeline", parts, {"requires_safety_checker": False})


@pytest.fixture
def random_adapter():
    """A function (modules, targets, rank, alpha, seed, size) -> Adapter with random A and B: one that does change something."""
    from sdlora.adapter import Adapter
    from sdlora.apply import select
    from sdlora.kinds.lora import Lora
    from sdlora.layers import named_layers

    def make(modules, targets=("attention",), rank=4, alpha=2.0, seed=0, size=0.1, metadata=None) -> Adapter:
        layers, generator = named_layers(modules), torch.Generator().manual_seed(seed)

        def update(i: int, name: str) -> Lora:
            out, *rest = layers[name].weight.shape
            r = rank(i) if callable(rank) else rank
            a = torch.randn((r, *rest), generator=generator) * size
            b = torch.randn((out, r, *(1 for _ in rest[1:])), generator=generator) * size
            return Lora(a, b, float(alpha(i) if callable(alpha) else alpha))

        return Adapter({name: update(i, name) for i, name in enumerate(select(modules, targets))}, metadata or {})

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three small pictures with captions."""
    return folders.pictures(tmp_path / "pictures")


@pytest.fixture
def in_memory():
    """A function (settings of a training, its base, a folder) -> a Run that writes nothing; the updates come off afterwards."""
    from sdlora import apply
    from sdlora.data import Cache, encode, scan
    from sdlora.training import session
    from sdlora.training.batches import Source

    used = []

    def make(wanted, base, folder: Path):
        apply.eject(base.modules)
        used.append(base)
        base = session.rescaled(base, wanted)
        settled = session.fitted(wanted.settled(), base)
        source = Source("images", encode(scan(folder), base, settled.resolution, Cache()), settled.batch_size, 1.0)
        return session._run(settled, base, [source], Cache(), {"base model": "b", "images": "i"})

    yield make
    for base in used:
        apply.eject(base.modules)


@pytest.fixture
def running(components, pictures, loaded, in_memory):
    """A function (settings, kind of base or None for the tiny one) -> a Run in memory."""
    return lambda wanted, kind=None: in_memory(wanted, loaded(kind) if kind else components, pictures)


@pytest.fixture
def small_training(pictures, tmp_path):
    """A function changes -> the settings of eight steps of two pictures."""
    import trainings

    return lambda **changes: trainings.small(pictures, tmp_path / "run", **changes)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is known of files that earlier tests used."""
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def adapter_files(components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with style.safetensors and text.safetensors, for the tiny base."""
    from sdlora import files
    from sdlora.adapter import Adapter
    from sdlora.apply import select
    from sdlora.kinds.lora import Lora
    from sdlora.layers import named_layers

    folder, layers = tmp_path_factory.mktemp("adapters"), named_layers(components.modules)
    for seed, (name, targets) in enumerate({"style": ("attention",), "text": ("text_attention",)}.items()):
        generator = torch.Generator().manual_seed(seed)
        shapes = {layer: layers[layer].weight.shape for layer in select(components.modules, targets)}
        made = {
            layer: Lora(torch.randn(2, inside, generator=generator) / 4, torch.randn(out, 2, generator=generator) / 4, 2.0)
            for layer, (out, inside) in shapes.items()
        }
        files.save(Adapter(made, {}), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def predict():
    """A function components -> the U-Net's output (2, 4, 8, 8) for one fixed noisy latent and two prompts."""
    from sdlora import conditioning
    from sdlora.conditioning import Sizes

    @torch.no_grad()
    def run(components) -> torch.Tensor:
        hint = conditioning.encode_text(components, ["a cat face", "a dog"])
        ids = conditioning.time_ids([Sizes((64, 64), (0, 0), (64, 64))] * 2)
        x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5)).to(components.dtype)
        return conditioning.predict(components.unet, x, torch.tensor([400, 700]), hint, ids)

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A function family -> (narrow base with CLIP's vocabulary, a folder saved by diffusers; the single file that sdlora writes of it)."""
    from functools import cache

    import checkpoint_models

    from sdlora import models
    from sdlora.checkpoints import single

    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def make(family: str) -> tuple[Path, Path]:
        source = checkpoint_models.make(root / family, family)
        single.export(models.opened(source), root / f"{family}.safetensors")
        return source, root / f"{family}.safetensors"

    return make


@pytest.fixture
def changed(made, tmp_path: Path):
    """A function (family, change, metadata) -> the family's single file after `change` of its dict of tensors; no header but `metadata`."""
    from safetensors.torch import load_file, save_file

    def make(family, change=lambda tensors: None, metadata=None):
        tensors = load_file(made(family)[1])
        change(tensors)
        save_file(tensors, tmp_path / "changed.safetensors", metadata)
        return tmp_path / "changed.safetensors"

    return make


@pytest.fixture
def hollow(tmp_path: Path):
    """As `changed`, of the true size and with nothing but zeros: a file of holes, which takes no room on the disk."""
    from checkpoint_models import hollow_file

    def make(family, change=lambda tensors: None, metadata=None):
        return hollow_file(tmp_path / "changed.safetensors", family, change, metadata)

    return make
