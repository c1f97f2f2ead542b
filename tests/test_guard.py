"""Memory that is not there, foreseen and met."""

import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdlora.conditioning import Sizes, encode_text, predict, time_ids
from sdlora.errors import SdloraError
from sdlora.generation import Request, generate, guard


def test_the_foreseen_memory_of_decoding_is_what_the_decoders_widest_tensors_take(components):
    """Measured: the bytes of all outputs of the VAE's layers at full size never come to more than what is foreseen, nor to half of it."""
    sizes: list[int] = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: sizes.append(o.numel() * 4))
        for m in components.vae.decoder.modules()
        if not list(m.children())
    ]
    with torch.no_grad():
        components.vae.decode(torch.zeros(1, 4, 16, 16))
    for hook in hooks:
        hook.remove()
    assert guard.decoding(components, (64, 64)) / 2 < 3 * max(sizes) <= guard.decoding(components, (64, 64))


class Alive(TorchDispatchMode):
    """The most bytes of tensors that were there at once, but for those that were there before."""

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return result


@pytest.mark.parametrize("kind", ["emoji", "sd1", "sdxl"])
def test_the_foreseen_memory_of_the_unet_is_what_its_tensors_take(components, loaded, kind: str):
    """Measured: 26.0, 27.6 and 30.5 of its tensors where 26 are foreseen, with two rows of 32 × 32 latents as with more."""
    base = components if kind == "emoji" else loaded(kind)
    hint = encode_text(base, ["a cat", "a dog"])
    x, sizes = torch.randn(2, 4, 32, 32), time_ids([Sizes((64, 64), (0, 0), (64, 64))] * 2)
    with torch.no_grad(), Alive([*base.unet.parameters(), *base.unet.buffers(), hint.context, x]) as alive:
        predict(base.unet, x, torch.tensor(5), hint, sizes)
    foreseen = guard.denoising(base, (32 * base.factor, 32 * base.factor), 2)
    assert foreseen * 0.98 < alive.most < foreseen * 1.25


def test_too_little_memory_is_said_before_anything_is_drawn_for_the_unet_as_for_the_vae(components, monkeypatch: pytest.MonkeyPatch):
    side, cpu = (256, 256), torch.device("cpu")
    need = guard.denoising(components, side, 16)
    assert guard.decoding(components, side) < need - 1
    monkeypatch.setattr(guard, "unused", lambda device: need - 1)
    guard.check(components, side, cpu, 15)
    requests = [Request("a cat", seed=seed, steps=1, width=256, height=256) for seed in range(8)]
    with pytest.raises(SdloraError, match="the U-Net takes .* for 16 × 256 × 256 pixels at once, and .* smaller batch"):
        generate(components, requests, batch=8)
    monkeypatch.setattr(guard, "unused", lambda device: 1000)
    with pytest.raises(SdloraError, match="a picture of 256 × 256 pixels takes at least .* to decode"):
        generate(components, requests)


def test_tiles_bound_the_foreseen_memory(components):
    plain = guard.decoding(components, (4096, 4096))
    components.vae.enable_tiling()
    try:
        tiled = guard.decoding(components, (4096, 4096))
    finally:
        components.vae.disable_tiling()
    assert tiled < plain / 10


def test_the_unused_memory_of_the_cpu_is_what_the_kernel_and_the_group_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(guard, "GROUP", tmp_path)
    cpu = torch.device("cpu")
    assert guard.unused(cpu) is None
    (tmp_path / "meminfo").write_text("MemTotal:       9000 kB\nMemAvailable:   4000 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert guard.unused(cpu) == 4000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 300\nactive_file 50\n")
    assert guard.unused(cpu) == 1_000_000 - 1000 + 350


def test_an_allocation_that_fails_is_one_line_and_other_errors_stay_what_they_are(components):
    with pytest.raises(SdloraError, match="not enough memory on cpu"), guard.enough(components):
        torch.empty(10**16)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), guard.enough(components):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_picture_that_is_made_of_numbers_again_after_nan_is_lost_at_its_first_step_without(components):
    watch = guard.Finite(2, torch.device("cpu"))
    for bad in (False, True, False, False):
        x = torch.zeros(2, 4, 2, 2)
        x[1, 0, 0, 0] = float("nan") if bad else 0.0
        watch.see(x)
    lost = watch.errors(components, [Request("one"), Request("other", seed=7)], 4)
    assert set(lost) == {1} and "'other' with seed 7 turned into NaN at step 2 of 4" in str(lost[1])
