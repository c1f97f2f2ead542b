"""What the U-Net is told: prompts as hidden states of the text encoders, and for SDXL a pooled embedding and sizes.

SD 1.x and 2.x take the last hidden states after the text encoder's final norm (the text encoder of 2.x has lost its last layer
for that). SDXL takes the last but one hidden states of both encoders, without the norm, side by side, and beside them the
projected embedding of the second (Podell et al. 2023, arXiv:2307.01952, sec. 2.1 and 2.2).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdlora.families import FAMILIES
from sdlora.models import Components


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The text of n samples."""

    context: Tensor  # (n, 77, width): all text encoders side by side
    pooled: Tensor | None = None  # (n, p): the last text encoder's projected end token, for SDXL

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: Tensor | slice) -> "Conditioning":
        return Conditioning(self.context[rows], None if self.pooled is None else self.pooled[rows])

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        return Conditioning(self.context.to(device, dtype), None if self.pooled is None else self.pooled.to(device, dtype))


@dataclass(frozen=True)
class Sizes:
    """What SDXL is told of a picture's making, in pixels; (height, width) or (top, left).  arXiv:2307.01952, sec. 2.2."""

    original: tuple[int, int]  # before it was resized
    crop: tuple[int, int]  # what was cut off above and on the left
    target: tuple[int, int]  # of the picture that the U-Net sees

    @property
    def numbers(self) -> tuple[int, ...]:
        """In the order of the time ids."""
        return (*self.original, *self.crop, *self.target)


def cat(parts: Iterable[Conditioning]) -> Conditioning:
    parts = list(parts)
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat([part.context for part in parts]), torch.cat(pooled) if pooled else None)


def masked(hint: Conditioning, kept: Tensor) -> Conditioning:
    """Zeros in the rows where `kept` (n,) is false, and there no gradient either."""
    pooled = None if hint.pooled is None else hint.pooled.where(kept[:, None], 0)
    return Conditioning(hint.context.where(kept[:, None, None], 0), pooled)


def tokens(components: Components, prompts: Sequence[str]) -> tuple[Tensor, ...]:
    """One (n, 77) of token numbers per text encoder; longer prompts are cut."""
    return tuple(
        tokenizer(
            list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        for tokenizer in components.tokenizers
    )


def encode_tokens(components: Components, ids: Sequence[Tensor]) -> Conditioning:
    """`tokens` through the text encoders as they are at the moment, with gradients where they are asked for."""
    if not FAMILIES[components.family].pooled:
        (encoder,) = components.text_encoders
        return Conditioning(encoder(ids[0].to(encoder.device)).last_hidden_state)
    said = [encoder(own.to(encoder.device), output_hidden_states=True) for encoder, own in zip(components.text_encoders, ids, strict=True)]
    return Conditioning(torch.cat([output.hidden_states[-2] for output in said], dim=-1), said[-1].text_embeds)


@torch.no_grad()
def encode_text(components: Components, prompts: Sequence[str]) -> Conditioning:
    """The prompts, encoded; longer ones than 77 tokens are cut."""
    return encode_tokens(components, tokens(components, prompts))


def encode_absent(components: Components) -> Conditioning:
    """One row that stands for no prompt at all: zeros where the base was trained with them (SDXL), else the empty prompt."""
    empty = encode_text(components, [""])
    return masked(empty, torch.zeros(1, dtype=torch.bool, device=empty.context.device)) if components.zeros_for_empty else empty


def time_ids(sizes: Sequence[Sizes], device: torch.device | str = "cpu") -> Tensor:
    """(n, 6) fp32: a bf16 number would round sizes beyond 256 pixels."""
    return torch.tensor([size.numbers for size in sizes], dtype=torch.float32, device=device)


def predict(unet: nn.Module, x: Tensor, t: Tensor, hint: Conditioning, ids: Tensor | None = None) -> Tensor:
    """What the U-Net says of x (n, 4, h, w) at timestep t, (n,) or a scalar. SDXL needs `ids`, the time ids (n, 6)."""
    added = None if hint.pooled is None else {"text_embeds": hint.pooled, "time_ids": ids}
    return unet(x, t, encoder_hidden_states=hint.context, added_cond_kwargs=added, return_dict=False)[0]
