"""Laws of fusing: from the originals each time, nothing left after any history, and no second copy of what stands in a file."""

import copy
import gc
import hashlib
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sdlora import models
from sdlora.adapter import Adapter
from sdlora.apply import applied, attach, eject, fused
from sdlora.apply.fuse import Kept, OnDisk
from sdlora.checkpoints.origins import remember
from sdlora.errors import SdloraError
from sdlora.kinds.lora import Lora
from sdlora.layers import named_layers
from sdlora.stored import contents


class Net(nn.Module):
    """Layers of every sort that an adapter may sit on, q, k and v with one input among them."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({f"to_{n}": nn.Linear(12, 12, bias=False) for n in "qkv"})
        self.proj = nn.Linear(12, 20)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.shortcut = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, 12) -> (n, …)"""
        q, k, v = (layer(x) for layer in self.attn1.values())
        h = self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.shortcut(self.conv(h.reshape(len(x), 4, 3, 5)))


def net(dtype: torch.dtype, file: Path | None = None) -> nn.Module:
    """Random weights, signed zeros among them; those of `attn1` and `conv` from a mapped file, if there is one."""
    torch.manual_seed(0)
    made = Net().to(dtype).requires_grad_(False)
    for parameter in made.parameters():
        parameter.view(-1)[:3] = -0.0
    if file:
        save_file({name: value.contiguous() for name, value in made.state_dict().items()}, file)
        stored = contents(file).tensors
        remember(made, {name: one for name, one in stored.items() if name.startswith(("attn1", "conv"))})
    return made


def adapters(modules) -> list[Adapter]:
    generator = torch.Generator().manual_seed(1)
    layers, found = named_layers(modules), []
    for i, names in enumerate((list(layers), list(layers)[:3], list(layers)[2:], list(layers)[4:])):
        updates = {}
        for name in names:
            out, *rest = layers[name].weight.shape
            a = torch.randn((i + 1, *rest), generator=generator)
            updates[name] = Lora(a, torch.randn((out, i + 1, *(1 for _ in rest[1:])), generator=generator), 1.0)
        found.append(Adapter(updates))
    return found


def digest(modules) -> dict[str, str]:
    """sha256 of every tensor's bytes."""
    state = {f"{c}.{k}": v for c, m in modules.items() for k, v in m.state_dict().items()}
    return {name: hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest() for name, value in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_random_walk_of_1000_changes_leaves_every_tensor_bit_identical(tmp_path, dtype, on_disk):
    modules = {"unet": net(dtype, tmp_path / "net.safetensors" if on_disk else None)}
    layers, draw = named_layers(modules), random.Random(0)
    x = torch.randn((2, 3, 12), generator=torch.Generator().manual_seed(2)).to(dtype)
    run = torch.no_grad()(modules["unet"])
    known, before, output = adapters(modules), digest(modules), run(x)
    attributes = {name: set(vars(layer)) for name, layer in layers.items()}
    blocks, values, is_trained, seen = [], [], False, set()
    for step in range(1000):
        match draw.choice(("add", "add", "remove", "re-weight", "rows", "train", "look")):
            case "add" if len(blocks) < 6:
                weighted = [(a, draw.choice((0.0, 1.0, draw.uniform(-2, 2)))) for a in draw.sample(known, draw.randint(1, 3))]
                blocks.append(applied(modules, weighted, draw.choice(("stacked", "fused"))))
                values.append(blocks[-1].__enter__())
            case "remove" if blocks:
                i = draw.randrange(len(blocks))
                values.pop(i)
                blocks.pop(i).__exit__(None, None, None)
            case "re-weight" | "rows" as how if stacks := [value for value in values if value]:
                stack = draw.choice(stacks)
                rows = [[draw.choice((0.0, draw.uniform(-1, 1))) for _ in stack.adapters] for _ in x]
                stack.set_rows(rows) if how == "rows" else stack.set_strengths(rows[0])
            case "train":
                eject(modules) if is_trained else attach(modules, draw.choice(known))
                is_trained = not is_trained
            case "look":
                seen.add(run(x).float().sum().item())
        if not blocks and not is_trained:
            assert digest(modules) == before, f"after {step} changes"
    eject(modules)
    for block in draw.sample(blocks, len(blocks)):
        block.__exit__(None, None, None)
    assert len(seen) > 50
    assert digest(modules) == before and torch.equal(run(x), output)
    assert not any(layer._forward_hooks for layer in layers.values())
    assert {name: set(vars(layer)) for name, layer in layers.items()} == attributes


def held() -> int:
    """Bytes of all tensors that Python knows of."""
    gc.collect()
    known = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter) and t.layout == torch.strided and not t.is_meta]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in known}.values())


@pytest.mark.parametrize("mapped", [True, False])
def test_only_weights_that_are_not_mapped_from_a_file_are_copied_by_fusing(tiny_base, random_adapter, mapped: bool):
    modules = models.load(tiny_base).modules
    if not mapped:
        modules = copy.deepcopy(dict(modules))
    adapter = random_adapter(modules, ("attention", "convolutions", "text_mlp"))
    size = sum(named_layers(modules)[name].weight.nbytes for name in adapter.layers)
    before, bits = held(), digest(modules)
    with fused(modules, [(adapter, 1.0)]):
        growth = held() - before
        assert growth < 0.01 * size if mapped else growth > 0.99 * size
        assert digest(modules) != bits
    assert digest(modules) == bits


def test_a_weight_that_is_not_what_its_file_says_is_copied(tmp_path):
    modules = {"unet": net(torch.float32, tmp_path / "net.safetensors")}
    with torch.no_grad():
        modules["unet"].conv.weight.add_(1)
    before = digest(modules)
    with fused(modules, [(adapters(modules)[0], 1.0)]):
        kinds = {name: type(layer._fusion.original) for name, layer in named_layers(modules).items()}
    assert kinds["unet.conv"] is Kept and kinds["unet.attn1.to_q"] is OnDisk and kinds["unet.proj"] is Kept
    assert digest(modules) == before


def test_half_precision_is_restored_from_a_file_in_single_precision(tmp_path):
    modules = {"unet": net(torch.float32, tmp_path / "net.safetensors").to(torch.bfloat16)}
    before = digest(modules)
    with fused(modules, [(adapters(modules)[0], 1.0)]):
        assert type(modules["unet"].conv._fusion.original) is OnDisk
        assert digest(modules) != before
    assert digest(modules) == before


def test_a_file_that_was_written_to_meanwhile_is_an_error_and_not_a_wrong_weight(tmp_path):
    path = tmp_path / "net.safetensors"
    modules = {"unet": net(torch.float32, path)}
    with pytest.raises(SdloraError, match="written to while an adapter was fused"), fused(modules, [(adapters(modules)[1], 1.0)]):
        data = bytearray(path.read_bytes())
        data[-3500:] = bytes(3500)  # most of the tensors
        with open(path, "r+b") as file:
            file.write(data)
