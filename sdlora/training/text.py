"""What the U-Net is told about a sample: embeddings cached once, or, where a text encoder is trained, made anew each time."""

from collections.abc import Callable, Sequence

import torch

from sdlora import conditioning
from sdlora.conditioning import Conditioning
from sdlora.data import Cache
from sdlora.data.encode import absent, embeddings
from sdlora.models import Components

Prompts = Callable[[Sequence[str | None]], Conditioning]  # captions, None for a dropped one -> n rows


def cached(captions: Sequence[str], components: Components, cache: Cache) -> Prompts:
    """From a table made before the training, for frozen text encoders."""
    unique = list(dict.fromkeys(captions))
    rows: dict[str | None, int] = {caption: i for i, caption in enumerate((None, *unique))}
    table = conditioning.cat([absent(components, cache), embeddings(unique, components, cache)]).to(components.device)
    return lambda batch: table[torch.tensor([rows[caption] for caption in batch], device=table.context.device)]


def encoded(captions: Sequence[str], components: Components) -> Prompts:
    """By the text encoders as they are at the moment, with gradients. A dropped caption is told as zeros where the base knows
    them, and else as an empty one."""
    unique = list(dict.fromkeys(("", *captions)))
    ids = [own.to(components.device) for own in conditioning.tokens(components, unique)]
    number = {caption: i for i, caption in enumerate(unique)}

    def encode(batch: Sequence[str | None]) -> Conditioning:
        own = list(dict.fromkeys(caption or "" for caption in batch))  # a caption that occurs twice is encoded once
        place = {caption: i for i, caption in enumerate(own)}
        rows = torch.tensor([number[caption] for caption in own], device=components.device)
        states = conditioning.encode_tokens(components, [table[rows] for table in ids])
        hint = states[torch.tensor([place[caption or ""] for caption in batch], device=components.device)]
        if not components.zeros_for_empty or None not in batch:
            return hint
        kept = torch.tensor([caption is not None for caption in batch], device=components.device)
        return conditioning.masked(hint, kept)

    return encode
