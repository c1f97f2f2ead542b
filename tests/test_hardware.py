"""Devices, precisions and what saves memory: they change where and how is computed, not what comes out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdlora import generation, hardware, latents, models
from sdlora.benchmark import memory
from sdlora.errors import SdloraError
from sdlora.generation import Request, generate

REQUEST = Request("a cat face", "a dog", seed=1, steps=3)


def pixels(components, *args, **settings) -> np.ndarray:
    return np.asarray(next(generate(components, [REQUEST], *args, **settings)).image).astype(int)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda unet: hardware.device("cudaa"), "unknown device 'cudaa'; did you mean cuda?"),
        (lambda unet: hardware.device("cpu:1"), "unknown device 'cpu:1'"),
        (lambda unet: hardware.dtype("fp8"), "unknown precision 'fp8'"),
        (lambda unet: hardware.set_attention(unet, "xformer"), "unknown attention 'xformer'; did you mean xformers?"),
    ],
)
def test_unknown_words_are_refused_with_the_nearest(components, call, message):
    with pytest.raises(SdloraError, match=message):
        call(components.unet)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_clear_line():
    with pytest.raises(SdloraError, match="device is 'cuda', and PyTorch finds no CUDA here; take cpu") as caught:
        hardware.device("cuda")
    assert "\n" not in str(caught.value)
    assert hardware.device("auto").type in ("cpu", "mps")


@pytest.mark.parametrize("found, message", [(None, "which is not installed; pip install"), (object(), "which needs CUDA")])
def test_xformers_without_its_package_or_without_cuda_is_one_clear_line(components, monkeypatch, found, message):
    monkeypatch.setattr(hardware, "find_spec", lambda name: found)
    before = dict(components.unet.attn_processors)
    with pytest.raises(SdloraError, match=message) as caught:
        hardware.set_attention(components.unet, "xformers")
    assert "\n" not in str(caught.value) and components.unet.attn_processors == before


def test_sdpa_draws_the_picture_of_auto(tiny_base, components):
    from diffusers.models.attention_processor import AttnProcessor2_0

    own = generation.load(tiny_base, "cpu", attention="sdpa")
    assert {type(p) for p in own.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert abs(pixels(own) - pixels(components)).max() <= 1


def test_the_vae_of_sdxl_decodes_in_fp32_where_fp16_would_overflow(bases):
    """With activations as large as the ones of SDXL's own VAE, beyond fp16's 65504."""
    half = models.load(bases("sdxl"), dtype=torch.float16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    assert models.load(bases("sdxl"), dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    assert models.load(bases("sd2"), dtype=torch.float16).vae.dtype == torch.float16
    with torch.no_grad():
        half.vae.decoder.conv_in.weight *= 1e6  # the group norm behind it takes the size away again
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float16)
        assert torch.isfinite(latents.decode(half, x)).all()
        half.vae.to(torch.float16)
        assert not torch.isfinite(latents.decode(half, x)).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sdxl_draws_in_half_precision_nearly_what_it_draws_in_fp32(bases, loaded, precision):
    half = generation.load(bases("sdxl"), "cpu", precision)
    assert abs(pixels(half) - pixels(loaded("sdxl"))).mean() < 8


def test_tiling_takes_large_pictures_apart_and_small_ones_not(bases, monkeypatch):
    components = generation.load(bases("sd1"), "cpu", tiling=True)
    tiles = []
    real = components.vae.decoder.forward
    monkeypatch.setattr(components.vae.decoder, "forward", lambda z, *a: tiles.append(tuple(z.shape[2:])) or real(z, *a))
    small, large = (torch.zeros(1, 4, side, side) for side in (8, 16))
    latents.decode(components, small)
    assert tiles == [(8, 8)]
    assert latents.decode(components, large).shape == (1, 3, 128, 128)
    assert len(tiles) > 4 and max(max(tile) for tile in tiles) <= 8


def test_offloading_draws_the_same_and_brings_each_part_in_for_its_turn(components, random_adapter, monkeypatch):
    turns = []
    real = hardware.resident

    def resident(modules, where):
        turns.append(([type(module).__name__ for module in modules], where))
        return real(modules, where)

    adapter = random_adapter(components.modules, ("attention", "text_attention"))
    plain = pixels(components, [(adapter, 1.0)])
    monkeypatch.setattr(hardware, "resident", resident)
    cpu = torch.device("cpu")
    assert (pixels(components, [(adapter, 1.0)], offload=cpu) == plain).all()
    assert turns == [(["CLIPTextModel"], cpu), (["UNet2DConditionModel"], cpu), (["AutoencoderKL"], cpu)]


def test_what_is_resident_elsewhere_comes_back_even_after_an_error():
    layer, meta = torch.nn.Linear(2, 2), torch.device("meta")
    layer.to(meta)
    with pytest.raises(NotImplementedError), hardware.resident([layer], torch.device("cpu")):  # meta has no numbers to bring
        pass
    assert layer.weight.is_meta
    other = torch.nn.Linear(2, 2)
    with hardware.resident([other], None):
        assert other.weight.device.type == "cpu"


def test_compiling_is_refused_on_the_cpu_before_anything_is_loaded_and_taken_on_a_gpu(monkeypatch):
    with pytest.raises(SdloraError, match="compile is set.*on the CPU.*slower.*leave it out"):
        generation.load("/nowhere", device="cpu", compile=True)
    hardware.check_compiling(torch.device("cuda"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    hardware.check_compiling(torch.device("cpu"))


def test_compiled_calls_come_and_go(components):
    with hardware.compiled(components.unet):
        assert hardware.is_compiled(components.unet)
        with hardware.plain(components.unet):
            assert not hardware.is_compiled(components.unet)
        assert hardware.is_compiled(components.unet)
    assert not hardware.is_compiled(components.unet)


@pytest.fixture
def tracing(monkeypatch):
    """Compiled is: traced by dynamo, and computed as traced. What is captured must not go stale as adapters come and go."""
    plain = hardware.compile_calls
    monkeypatch.setattr(hardware, "compile_calls", lambda module: plain(module, "eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_model_draws_with_fused_adapters_what_the_plain_one_draws(components, random_adapter, tracing):
    one, two = (random_adapter(components.modules, seed=seed, size=0.3) for seed in (1, 2))
    plain = [pixels(components, weighted, apply="fused") for weighted in ([(one, 1.0)], [(two, 1.0)], [])]
    assert abs(plain[0] - plain[1]).max() > 10
    with hardware.compiled(components.unet):
        fast = [pixels(components, weighted, apply="fused") for weighted in ([(one, 1.0)], [(two, 1.0)], [])]
    assert max(abs(a - b).max() for a, b in zip(plain, fast, strict=True)) <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_offloading_on_a_gpu_draws_the_picture_and_leaves_the_gpu_empty(bases, random_adapter, precision):
    whole, moved = (generation.load(bases("sdxl"), "cuda", precision, offload=offload) for offload in (False, True))
    adapter = random_adapter(whole.modules, ("attention", "text_attention"))
    plain = pixels(whole, [(adapter, 1.0)])
    del whole
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    assert abs(pixels(moved, [(adapter, 1.0)], offload=torch.device("cuda")) - plain).max() <= 2
    assert torch.cuda.memory_allocated() <= before and moved.device.type == "cpu"


def test_a_peak_of_memory_is_seen_and_forgotten():
    device = torch.device("cpu")
    memory.release()
    if not hardware.forget_peak(device):
        pytest.skip("this system keeps no peak that can be reset")
    start = hardware.peak(device)
    big = torch.ones(2**26)
    size, high = big.nbytes, hardware.peak(device)
    del big
    memory.release()
    hardware.forget_peak(device)
    assert high - start > size / 2 > hardware.peak(device) - start  # Linux counts in batches of pages for each core: up to 32 MiB on 64


@pytest.mark.slow
def test_a_compiled_model_draws_with_stacked_adapters_and_is_compiled_once_for_a_set_of_layers(components, random_adapter, tracing):
    one, two = (random_adapter(components.modules, seed=seed, size=0.3) for seed in (1, 2))
    histories = [[(one, 1.0)], [(two, -0.5)], [], [(one, 0.3)]]
    plain = [pixels(components, weighted, apply="stacked") for weighted in histories]
    assert abs(plain[0] - plain[3]).max() > 10
    with hardware.compiled(components.unet):
        fast = [pixels(components, weighted, apply="stacked") for weighted in histories[:3]]
        with torch._dynamo.config.patch(error_on_recompile=True):
            fast.append(pixels(components, histories[3], apply="stacked"))
            again = pixels(components, histories[2], apply="stacked")
    assert max(abs(a - b).max() for a, b in zip(plain, fast, strict=True)) <= 1
    assert (again == fast[2]).all()


@pytest.mark.slow
def test_a_compiled_model_draws_each_picture_with_adapters_and_steps_of_its_own(components, random_adapter, tracing):
    named = {name: random_adapter(components.modules, seed=seed, size=0.3) for seed, name in enumerate("ab")}

    def drawn(*texts: str) -> np.ndarray:
        requests = [replace(REQUEST, prompt=f"a cat face {text}") for text in texts]
        return np.stack([np.asarray(p.image).astype(int) for p in generate(components, requests, named=named, apply="stacked")])

    first, second = ("<lora:a:1>", "<lora:b:0.5>"), ("<lora:a:0.2>", "<lora:b:1@0-0.5,0.3@0.5-1>")
    plain = [drawn(*first), drawn(*second)]
    assert abs(plain[0] - plain[1]).max() > 10
    with hardware.compiled(components.unet):
        fast = [drawn(*first)]
        with torch._dynamo.config.patch(error_on_recompile=True):
            fast.append(drawn(*second))
    assert max(abs(a - b).max() for a, b in zip(plain, fast, strict=True)) <= 1
