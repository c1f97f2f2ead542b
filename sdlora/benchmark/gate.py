"""What has to be true before a time means anything: the adapter acts, both ways agree, and it leaves no trace."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from sdlora import hardware
from sdlora.adapter import Adapter
from sdlora.apply import applied
from sdlora.benchmark.conditions import CONDITIONS, Subject, active
from sdlora.benchmark.names import BASE
from sdlora.errors import SdloraError
from sdlora.generation import Request
from sdlora.models import Components

Weighted = list[tuple[Adapter, float]]
HOWS = ("stacked", "fused")
NOISE = 1e-3  # what the U-Net's first inputs may differ by: σ₀ of stock diffusers is rounded otherwise


@dataclass(frozen=True)
class Check:
    """One line of the gate: what is demanded, what was found."""

    law: str
    found: str
    passed: bool


def check(components: Components, weighted: Weighted, draw: Callable[[], Image.Image], bound: int) -> tuple[Check, ...]:
    """`draw` gives the same picture of the same prompt and seed; `bound` is in grey levels of 255. SdloraError if a law is broken."""
    weights = fingerprint(components)
    base = draw()
    images = {how: drawn(components, weighted, how, draw) for how in HOWS}
    zero = {how: drawn(components, [(adapter, 0.0) for adapter, _ in weighted], how, draw) for how in HOWS}
    apart = difference(images["stacked"], images["fused"])
    checks = (
        *(acts(how, difference(base, images[how]), apart) for how in HOWS),
        Check(f"stacked and fused draw the same image within {bound} levels", f"{apart} of 255 levels", apart <= bound),
        *(same(f"η = 0 {how} draws the base's image, bit for bit", base, zero[how]) for how in HOWS),
        same("after removal the base draws its image again, bit for bit", base, draw()),
        Check("after removal every tensor is the base's, bit for bit", weights[:12], fingerprint(components) == weights),
    )
    return passed(checks)


def conditions(
    subject: Subject, names: Sequence[str], prompt: str, wanted: Sequence[Request], bounds: tuple[int, int]
) -> tuple[Check, ...]:
    """Every condition that is going to be measured: the same noise, and the picture, the last of `wanted`, that it ought to give.

    `bounds` in grey levels: for several adapters stacked against the same fused, and for the reference against ours.
    """
    images, noises = {}, {}
    for name in dict.fromkeys((BASE, *names)):
        with active(subject, name, prompt) as found:
            draw: Callable[[], Image.Image] = lambda draw=found.draw: draw(wanted)[-1]  # type: ignore[misc]  # noqa: E731
            with hardware.plain(found.unet):  # a compiled graph does not see who looks
                noises[name], images[name] = first_input(found.unet, draw)
            if CONDITIONS[name].compiled:
                images[name] = draw()
    apart = {name: float((noise - noises[BASE]).abs().max()) for name, noise in noises.items()}
    worst = max(apart, key=lambda name: apart[name])
    checks = [Check(f"all {len(apart)} conditions start from the same noise", f"at most {apart[worst]:.1e} apart", apart[worst] <= NOISE)]
    for name in names:
        twin = twin_of(subject, name, prompt, wanted, images[BASE])
        if twin is not None:
            bound = bounds[1] if CONDITIONS[name].stock else bounds[0]
            levels = difference(images[name], twin)
            checks.append(Check(f"{name} draws what it should, within {bound} levels", f"{levels} of 255 levels", levels <= bound))
            if CONDITIONS[name].how:
                checks.append(acts(name, difference(images[name], images[BASE]), levels))
    return passed(tuple(checks))


def twin_of(subject: Subject, name: str, prompt: str, wanted: Sequence[Request], base: Image.Image) -> Image.Image | None:
    """The same by other means: our fused weights; the base itself where the U-Net is another's or compiled; None where `check` looks."""
    condition, weighted = CONDITIONS[name], subject.weighted(name, prompt)
    other = condition.stock or condition.compiled
    if condition.how is None:
        return base if other else None
    if condition.idle or (condition.count == 1 and not other):
        return None
    if condition.own:
        weighted = [weighted[(len(wanted) - 1) % len(weighted)]]
    with applied(subject.components.modules, weighted, "fused"), active(subject, BASE, prompt) as found:
        return found.draw(wanted)[-1]


def first_input(unet: nn.Module, draw: Callable[[], Image.Image]) -> tuple[torch.Tensor, Image.Image]:
    """What the U-Net is given first, of the first picture, and the picture that `draw` returns."""
    seen: list[torch.Tensor] = []

    def look(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not seen:
            seen.append(inputs[0][:1].detach().float().cpu().clone())

    with unet.register_forward_pre_hook(look):
        image = draw()
    return seen[0], image


def passed(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    broken = [f"{c.law}: {c.found}" for c in checks if not c.passed]
    if broken:
        raise SdloraError("the correctness gate failed, so no time is measured or printed\n  " + "\n  ".join(broken))
    return checks


def drawn(components: Components, weighted: Weighted, how: str | None, draw: Callable[[], Image.Image]) -> Image.Image:
    with applied(components.modules, weighted, how) if how else nullcontext():
        return draw()


def acts(how: str, levels: int, apart: int) -> Check:
    return Check(f"{how}, the adapter changes the image by more than rounding ({apart} levels)", f"{levels} of 255 levels", levels > apart)


def same(law: str, one: Image.Image, other: Image.Image) -> Check:
    first, second = image_hash(one), image_hash(other)
    return Check(law, first[:12] if first == second else f"{first[:12]} became {second[:12]}", first == second)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The greatest difference of any pixel and channel, in levels of 255."""
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def image_hash(image: Image.Image) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def fingerprint(components: Components) -> str:
    """sha256 over names, shapes, types and bytes of every tensor of all networks: a wrapper left behind changes a name."""
    digest = hashlib.sha256()
    networks: dict[str, nn.Module] = {**components.modules, "vae": components.vae}
    for network, module in sorted(networks.items()):
        for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
            digest.update(f"{network}.{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
