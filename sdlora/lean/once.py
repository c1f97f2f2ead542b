"""A U-Net's first layers on rows that repeat themselves: each row once.

Classifier-free guidance calls it with every picture twice, with its prompt and without, and down to the first cross-attention
no layer looks at the prompt. What comes out is the same to the last bit, since packed layers do not care who else is there.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.layers import every
from sdlora.lean.blocks import Attention, Pixels, Transformer, known


class Repeated:
    """What one module hands to the next: rows that repeat, and which they repeat."""

    def __init__(self) -> None:
        self.whole: Tensor | None = None
        self.part: Tensor | None = None

    def repeat(self, part: Tensor, times: int) -> Tensor:
        self.part, self.whole = part, torch.cat([part] * times)
        return self.whole

    def take(self, x: Tensor) -> Tensor | None:
        """The rows that x repeats, if it is what `repeat` gave last and nobody has written to it since, as U-Nets do with the residuals of
        T2I adapters."""
        part = self.part if x is self.whole else None
        self.whole = self.part = None
        return part if part is not None and all(torch.equal(rows, part) for rows in x.split(len(part))) else None


class Step:
    """One module on the way: of rows that repeat themselves it computes one copy."""

    def __init__(self, module: nn.Module, own: Callable[..., Any], state: Repeated):
        """`own` computes in the module's place."""
        self.module, self.own, self.state = module, own, state
        self.inner = every(module)[1:]

    def steady(self) -> bool:
        """Whether nobody looks on who may want all rows: a hook says with `rowwise` that it does the same with each."""
        if self.module._forward_hooks or self.module._forward_pre_hooks:
            return False
        hooks = (hook for inner in self.inner for hook in (*inner._forward_pre_hooks.values(), *inner._forward_hooks.values()))
        return all(getattr(hook, "rowwise", False) for hook in hooks)

    def part(self, x: Tensor) -> Tensor | None:
        return self.state.take(x)


class Inner(Step):
    """One that looks at nothing but x, and at what all rows share."""

    def __call__(self, x: Tensor, *more: Any) -> Any:
        part = self.part(x)
        if part is None or not self.steady() or not all(len(tensor) == 1 for tensor in more):
            return self.own(x, *more)
        return self.state.repeat(self.own(part, *more), len(x) // len(part))


class First(Inner):
    """The module that sees what the U-Net is called with."""

    def part(self, x: Tensor) -> Tensor | None:
        n = len(x)
        return next((x[:p] for p in range(1, n // 2 + 1) if n % p == 0 and torch.equal(x[p:], x[:-p])), None)


class Last(Step):
    """The module with the first cross-attention, where the rows part."""

    def __call__(self, x: Tensor, encoder_hidden_states: Tensor | None = None, **words: Any) -> Any:
        part = self.part(x)
        plain = known(words) and not words.get("return_dict", True) and encoder_hidden_states is not None
        alone = part is None or not plain or len(encoder_hidden_states) != len(x) or not self.steady()  # type: ignore[arg-type]
        return self.own(x if alone else part, encoder_hidden_states, **words)


def once(unet: Any, owns: Mapping[nn.Module, Callable[..., Any]]) -> dict[nn.Module, Step]:
    """What takes the place of `owns`, by which the modules compute so far, for those that come before the first cross-attention."""
    if type(unet).__name__ != "UNet2DConditionModel" or unet.config.addition_embed_type is not None:  # SDXL's timestep knows the prompt
        return {}
    state, found = Repeated(), dict[nn.Module, Step]()
    for module in way(unet):
        own = owns.get(module)
        if any("forward" in vars(inner) for inner in every(module)):  # somebody's own, who may want all rows
            break
        if isinstance(own, Pixels):
            block = own.block.transformer_blocks[0]
            if isinstance(owns.get(block), Transformer) and isinstance(owns.get(block.attn1), Attention):  # no processor of somebody's own
                found[module] = Last(module, own, state)
            break
        if own is None and type(module).__name__ != "Downsample2D":
            break
        found[module] = (Inner if found else First)(module, own or module.forward, state)
    return found


def way(unet: Any) -> Iterator[nn.Module]:
    """The modules in the order in which they are called, the first with cross-attention last."""
    yield unet.conv_in
    for block in unet.down_blocks:
        for i, resnet in enumerate(block.resnets):
            yield resnet
            if attentions := getattr(block, "attentions", None):
                yield attentions[i]
        yield from block.downsamplers or ()
