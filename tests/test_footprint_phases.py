"""Memory foreseen beside that of the steps: what optimizers remember, encoding, samples, validation; and what fits then."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from skeletons import networks

from bases import UNET
from sdlora import hardware
from sdlora.data import Cache, encode, scan
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, fitting, footprint, optimizers, sharding, text
from sdlora.training.footprint import GIB, Estimate, Footprint
from sdlora.training.sharding import Sharding

CUDA = torch.device("cuda")  # as a word only: nothing here computes on one
SHAPES = [(8, 320), (320, 8), (16, 320, 3, 3), (320, 16, 1, 1), (48, 768), (5, 7)]
CASES = [(name, {}) for name in optimizers.KINDS] + [("adamw", {"amsgrad": True}), ("adafactor", {"beta1": 0.9})]


@pytest.fixture
def config(tmp_path):
    def make(**changes) -> TrainConfig:
        usual = {"images": tmp_path, "output": tmp_path / "run", "base": "x", "precision": "bf16", "batch_size": 1, "device": "cpu"}
        return TrainConfig(**usual | changes)

    return make


@pytest.fixture
def on_a_card(monkeypatch):
    """What is estimated is estimated for CUDA."""
    monkeypatch.setattr(footprint.placement, "device", lambda wanted: CUDA)
    monkeypatch.setattr(fitting.placement, "device", lambda wanted: CUDA)


def weights(family: str, *names: str) -> int:
    """In bf16."""
    return sum(2 * p.numel() for name in names for p in networks(family)[name].parameters())


@pytest.mark.parametrize(("name", "given"), CASES, ids=str)
def test_what_an_optimizer_remembers_is_foreseen_to_the_byte(name, given, aside):
    if not optimizers.installed(name):
        pytest.skip(optimizers.missing(name))
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = optimizers.build([{"params": parameters, "lr": 1e-3}], name, 0.01, given)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for parameter, shape in zip(parameters, SHAPES, strict=True):
        state = optimizer.state[parameter].items()  # bitsandbytes' maps of 8 bits are one for all, and steps are one number
        kept = sum(t.nbytes for key, t in state if isinstance(t, torch.Tensor) and t.numel() > 1 and not key.startswith("qmap"))
        assert optimizers.KINDS[name].state(shape, given) == kept


def test_8_bits_are_adamw_but_for_their_rounding(aside):
    """One step from the same gradient is the same sign everywhere; small matrices, which stay in fp32, are AdamW's to rounding."""
    if not optimizers.installed("adamw8bit"):
        pytest.skip(optimizers.missing("adamw8bit"))
    results = {}
    for name in ("adamw", "adamw8bit"):
        source = torch.Generator().manual_seed(0)
        small, large = (torch.nn.Parameter(torch.randn(shape, generator=source)) for shape in ((8, 16), (48, 128)))
        start = [small.detach().clone(), large.detach().clone()]
        optimizer = optimizers.build([{"params": [small, large], "lr": 0.01}], name, 0.1)
        for _ in range(20):
            for parameter in (small, large):
                parameter.grad = torch.randn(parameter.shape, generator=source) + 0.5
            optimizer.step()
        results[name] = [now.detach() - before for now, before in zip((small, large), start, strict=True)]
    (small, large), (few, many) = results["adamw"], results["adamw8bit"]
    torch.testing.assert_close(few, small, rtol=1e-4, atol=1e-6)
    assert 0 < (many - large).abs().max() and (many - large).norm() < 0.05 * large.norm()


def test_an_adapter_costs_what_its_optimizer_and_its_average_keep(config):
    modules = networks("sd1")
    plain = footprint.estimate(config(), modules).adapter
    assert footprint.estimate(config(ema={"decay": 0.9}), modules).adapter == plain * 20 // 16
    assert footprint.estimate(config(optimizer={"name": "lion"}), modules).adapter == plain * 12 // 16
    wide = config(rank=64).model_copy(update={"optimizer": config().optimizer.model_copy(update={"name": "adamw8bit"})})
    assert 0.62 < footprint.estimate(wide, modules).adapter / footprint.estimate(config(rank=64), modules).adapter < 0.65  # 10 of 16 bytes


@pytest.mark.parametrize(("size", "tiling", "counted"), [(512, False, 0.3125), (1024, False, 1.25), (1024, True, 0.3125)])
def test_the_vaes_activations_are_those_counted(config, size, tiling, counted):
    """train/memory.py's count on tensors without numbers: Stable Diffusion's VAE encodes one picture, in bf16."""
    found = Estimate.of(config(resolution=size, vae_tiling=tiling), networks("sd1"))
    assert (found.encoding() - found.every - footprint.BASIC) / GIB == pytest.approx(counted, rel=0.001)


@pytest.mark.parametrize(("family", "counted"), [("sd1", 0.127), ("sdxl", 0.308)])
def test_a_call_without_a_gradient_takes_what_was_counted(config, family, counted, on_a_card):
    found = Estimate.of(config(), networks(family))
    side = found.unet.config.sample_size
    assert found.forward(2, side, side) / GIB == pytest.approx(counted, rel=0.1)


def test_a_card_holds_what_a_phase_needs_and_a_cpu_all_that_is_not_let_go_of(config, monkeypatch):
    modules, xl = networks("sdxl"), config(resolution=1024, gradient_checkpointing=True)
    every, texts = weights("sdxl", *modules), weights("sdxl", "text_encoder", "text_encoder_2")
    alone = footprint.estimate(xl.model_copy(update={"samples": fitting.Samples(count=0)}), modules)
    drawn = footprint.estimate(xl, modules)
    assert alone.weights == weights("sdxl", "unet") and drawn.weights == every, "on a CPU samples keep everything in memory"
    assert alone.others["encoding the pictures"] > every + GIB and alone.worst == "encoding the pictures"
    monkeypatch.setattr(footprint.placement, "device", lambda wanted: CUDA)
    card = footprint.estimate(xl, modules)
    assert card.weights == weights("sdxl", "unet") and card.scratch == 0
    assert card.others["encoding the pictures"] == texts > weights("sdxl", "vae") + 1.25 * GIB, "without the U-Net"
    assert card.others["drawing samples"] == weights("sdxl", "unet", "vae") + card.adapter + round(1.5 * GIB)


def test_where_one_text_encoder_learns_all_are_on_the_card(config, on_a_card):
    modules = networks("sdxl")
    found = footprint.estimate(config(targets=("attention", "text_attention"), resolution=1024), modules)
    assert found.weights == weights("sdxl", "unet", "text_encoder", "text_encoder_2")


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


@pytest.mark.parametrize("told", [FSDP, ZERO], ids=["fsdp", "zero 3"])
def test_of_a_base_that_is_split_a_card_holds_a_share_and_the_blocks_at_work(config, on_a_card, monkeypatch, told):
    modules, xl = networks("sdxl"), config(resolution=1024, gradient_checkpointing=True)
    alone = footprint.estimate(xl, modules)
    found = {}
    for count in (2, 8):
        for name, value in (told | {"WORLD_SIZE": str(count)}).items():
            monkeypatch.setenv(name, value)
        found[count] = footprint.estimate(xl, modules)
    unet = weights("sdxl", "unet")
    blocks = found[2].weights - unet // 2
    assert found[8].weights - unet // 8 == blocks < 0.25 * unet, "the blocks at work are the same however many processes there are"
    assert found[8].activations == alone.activations and found[8].adapter == alone.adapter
    assert found[8].others["drawing samples"] == alone.others["drawing samples"] + unet // 8, "the first draws with the whole base"
    assert found[8].others["splitting the base"] == unet + unet // 8 and "splitting the base" not in alone.others
    assert "of a base in 8 shares" in footprint.lines(found[8])[0] and "shares" not in footprint.lines(alone)[0]


def test_what_is_gathered_is_what_was_measured():
    """docs/memory.md: 523 MiB on two processes, of blocks, of the whole at once, and of blocks that stay."""
    wide = {"block_out_channels": (128, 256, 512, 512), "cross_attention_dim": 256, "attention_head_dim": 8}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET | wide)
    measured = {Sharding(): 118, Sharding("NO_WRAP"): 1046, Sharding(reshard=False): 524}
    for how, peak_measured in measured.items():
        assert 4 * sharding.gathered(unet, how) / 2**20 == pytest.approx(peak_measured, rel=0.1)


def test_validation_and_the_bases_own_pictures_have_peaks_of_their_own(config, on_a_card):
    modules = networks("sd1")
    found = footprint.estimate(config(resolution=512, validation={"fraction": 0.1}, prior={"prompts": ("a",)}), modules)
    assert found.others["validating"] == pytest.approx(found.weights + found.adapter + 2 * 0.127 * GIB, rel=0.01)
    assert found.others["drawing the base's own pictures"] == weights("sd1", "unet", "vae") + round(0.375 * GIB)


def test_where_encoding_takes_too_much_the_vae_takes_tiles_and_where_samples_do_none_are_drawn(config, on_a_card):
    large = config(resolution=2048, gradient_checkpointing=True)
    found = fitting.fit(large, fitting.parse("6.5GB"), networks("sd1"))
    assert found.config.vae_tiling and found.config.samples.count == 4
    assert "vae_tiling False → True" in found.reasons[0] and "latents of large pictures differ slightly" in "".join(found.reasons)
    xl = config(resolution=1024, gradient_checkpointing=True, validation={"fraction": 0.1})
    less = fitting.fit(xl, fitting.parse("8GB"), networks("sdxl"))
    assert less.config.samples.count == 0 and "samples.count 4 → 0" in less.reasons[0]
    assert fitting.fit(xl, fitting.parse("9GB"), networks("sdxl")).config.samples.count == 4


def test_what_is_not_there_on_the_card_is_said_by_its_phase(config):
    with pytest.raises(SdloraError, match="it still takes about .* GiB while encoding the pictures; take"):
        fitting.fit(config(resolution=1024), fitting.parse("7GB"), networks("sdxl"))


def test_a_network_has_its_turn_only_where_something_is_encoded(components, pictures, tmp_path, monkeypatch):
    """And then the U-Net is elsewhere, first out and last in."""
    moved = []

    @contextmanager
    def resident(networks, where):
        names = ["unet" if one is components.unet else "vae" if one is components.vae else "text" for one in networks]
        moved.append((*names, "out"))
        yield
        moved.append((*names, "back"))

    found, turn = scan(pictures), [("unet", "out"), ("vae", "out"), ("vae", "back"), ("unet", "back")]
    monkeypatch.setattr(hardware, "resident", resident)
    for expected in (turn, []):
        moved.clear()
        encode(found, components, 32, Cache(tmp_path / "cache"))
        assert moved == expected
    for expected in ([(a.replace("vae", "text"), b) for a, b in turn], []):
        moved.clear()
        text.cached(["a thing", "another"], components, Cache(tmp_path / "cache"))
        assert moved == expected


def test_the_phase_that_takes_the_most_is_named():
    step = Footprint(4 * GIB, GIB, GIB, 0, 1, {"encoding the pictures": 5 * GIB, "drawing samples": 7 * GIB})
    assert step.total == 7 * GIB and step.step == 6 * GIB
    assert footprint.lines(step)[0].startswith("memory   about 7.00 GiB while drawing samples; a step about 6.00 GiB (weights 4.00 GiB")
    calm = Footprint(4 * GIB, GIB, GIB, 0, 1, {"encoding the pictures": 5 * GIB})
    assert calm.worst is None and footprint.lines(calm)[0].startswith("memory   about 6.00 GiB (weights")


PEAKS = """
import ctypes, gc
from pathlib import Path
import torch
from sdlora import generation, latents, models
from sdlora.generation import Request

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def peak(work):
    work()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS:")
    work()
    return resident("VmHWM:") - before

base = models.load("emoji")
picture, wanted = torch.rand(1, 3, 256, 256), [Request("a cat", seed=seed, steps=2) for seed in range(4)]
print(peak(lambda: latents.encode_image(base, picture)), peak(lambda: list(generation.generate(base, wanted))))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process, and takes it back")
def test_peaks_foreseen_are_those_of_the_process(config):
    """On the embedded base in fp32: not less than it takes, and not 2.5 times as much (1.5 to 1.9 were seen: the allocator and the kernels
    have a say). In a process of its own: what other tests have freed and the allocator kept would serve again, and no growth be seen."""
    found = Estimate.of(config(base="emoji", precision="fp32", resolution=256))
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    encoding, drawing = map(int, done.stdout.split())
    assert 1 < (found.encoding() - found.weights()) / encoding < 2.5
    assert 1 < found.drawing(4, 5.0) / drawing < 2.5
