"""What the U-Net is told: prompts as hidden states of the text encoders, and for SDXL a pooled embedding and sizes.

SD 1.x and 2.x take the last hidden states after the text encoder's final norm (the text encoder of 2.x has lost its last layer
for that). SDXL takes the last but one hidden states of both encoders, without the norm, side by side, and beside them the
projected embedding of the second (Podell et al. 2023, arXiv:2307.01952, sec. 2.1 and 2.2).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdlora.errors import SdloraError
from sdlora.families import FAMILIES
from sdlora.models import Components
from sdlora.prompts.encode import chunks_of, padded

CHUNKS = 3  # of 75 tokens that a caption may have where nothing else is said: 225, kohya's most


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The text of n samples."""

    context: Tensor  # (n, 77 k, width): all text encoders side by side; k chunks of the longest text
    pooled: Tensor | None = None  # (n, p): the last text encoder's projected end token, for SDXL
    mask: Tensor | None = None  # (n, 77 k) bool: false where a shorter text has nothing; None: all have the same length

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: Tensor | slice) -> "Conditioning":
        return Conditioning(*(None if part is None else part[rows] for part in (self.context, self.pooled, self.mask)))  # type: ignore[arg-type]

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return Conditioning(self.context.to(device, dtype), pooled, None if self.mask is None else self.mask.to(device))


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
    """One after the other; shorter ones are filled up with zeros that the mask hides from the U-Net."""
    parts = list(parts)
    pooled = [part.pooled for part in parts if part.pooled is not None]
    longest = max(part.context.shape[1] for part in parts)
    filled = [_filled(part, longest) for part in parts]
    plain = all(part.mask is None and part.context.shape[1] == longest for part in parts)
    masks = None if plain else torch.cat([mask for _, mask in filled])
    return Conditioning(torch.cat([context for context, _ in filled]), torch.cat(pooled) if pooled else None, masks)


def _filled(part: Conditioning, length: int) -> tuple[Tensor, Tensor]:
    n, own = part.context.shape[:2]
    mask = part.context.new_ones((n, own), dtype=torch.bool) if part.mask is None else part.mask
    if own == length:
        return part.context, mask
    return nn.functional.pad(part.context, (0, 0, 0, length - own)), nn.functional.pad(mask, (0, length - own))


def masked(hint: Conditioning, kept: Tensor) -> Conditioning:
    """Zeros in the rows where `kept` (n,) is false, and there no gradient either."""
    pooled = None if hint.pooled is None else hint.pooled.where(kept[:, None], 0)
    return Conditioning(hint.context.where(kept[:, None, None], 0), pooled, hint.mask)


def tokens(components: Components, prompts: Sequence[str]) -> tuple[Tensor, ...]:
    """One (n, 77) of token numbers per text encoder; longer prompts are cut."""
    return tuple(
        tokenizer(
            list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        for tokenizer in components.tokenizers
    )


def chunk_tokens(components: Components, caption: str, limit: int = CHUNKS) -> tuple[Tensor, ...]:
    """One (k, 77) of token numbers per text encoder: the caption as it stands, brackets and all, in chunks of 75 tokens, which end at a
    comma where one is near (`sdlora.prompts.chunks`). What is beyond `limit` chunks is cut."""
    found = [[padded(chunk.ids, t.eos_token_id, t.pad_token_id) for chunk in chunks_of(t, caption, "None")] for t in components.tokenizers]
    count = min(limit, max(map(len, found)))
    empty = [padded(chunks_of(t, "", "None")[0].ids, t.eos_token_id, t.pad_token_id) for t in components.tokenizers]
    return tuple(torch.tensor([*own, *[none] * count][:count]) for own, none in zip(found, empty, strict=True))


def encode_tokens(components: Components, ids: Sequence[Tensor], clip_skip: int = 1) -> Conditioning:
    """`tokens` through the text encoders as they are at the moment, with gradients where they are asked for.

    clip_skip   1 is the last layer, n the n-th from the end. SdloraError where the encoder has fewer, and for SDXL's own beyond 2
    """
    check_clip_skip(components, clip_skip)
    if not FAMILIES[components.family].pooled:
        (encoder,) = components.text_encoders
        said = encoder(ids[0].to(encoder.device), output_hidden_states=clip_skip > 1)
        if clip_skip == 1:
            return Conditioning(said.last_hidden_state)
        return Conditioning(getattr(encoder, "text_model", encoder).final_layer_norm(said.hidden_states[-clip_skip]))
    outputs = [
        encoder(own.to(encoder.device), output_hidden_states=True) for encoder, own in zip(components.text_encoders, ids, strict=True)
    ]
    return Conditioning(torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds)


def check_clip_skip(components: Components, clip_skip: int) -> None:
    layers = components.text_encoders[0].config.num_hidden_layers
    if FAMILIES[components.family].pooled and clip_skip > 2:
        raise SdloraError(f"clip_skip is {clip_skip}; Stable Diffusion XL always reads the last layer but one, which is 2; leave it out")
    if not 1 <= clip_skip <= layers:
        raise SdloraError(f"clip_skip is {clip_skip}; this text encoder has {layers} layers: 1 is the last, {layers} the first")


def encode_chunks(components: Components, captions: Sequence[Sequence[Tensor]], clip_skip: int = 1) -> Conditioning:
    """`chunk_tokens` of n captions through the text encoders, all chunks in one call, with gradients where they are asked for; the
    pooled embedding is the first chunk's."""
    counts = [len(own[0]) for own in captions]
    ids = [torch.cat([own[i] for own in captions]) for i in range(len(captions[0]))]
    rows = encode_tokens(components, ids, clip_skip)
    parts, start = [], 0
    for count in counts:
        pooled = None if rows.pooled is None else rows.pooled[start : start + 1]
        parts.append(Conditioning(rows.context[start : start + count].flatten(0, 1)[None], pooled))
        start += count
    return cat(parts)


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
    told = {"encoder_hidden_states": hint.context, "encoder_attention_mask": hint.mask, "added_cond_kwargs": added}
    return unet(x, t, **told, return_dict=False)[0]
