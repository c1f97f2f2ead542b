"""What the U-Net is told about a sample: embeddings cached once, or, where a text encoder is trained, made anew each time."""

from collections.abc import Callable, Sequence

import torch

from sdlora import conditioning
from sdlora.conditioning import CHUNKS, Conditioning
from sdlora.data import Cache
from sdlora.data.encode import Turn, embedding, encoders_of
from sdlora.models import Components

Prompts = Callable[[Sequence[str | None]], Conditioning]  # captions, None for a dropped one -> n rows
RESIDENT = 1 << 28  # bytes of embeddings that may stay beside the U-Net; more of them come over batch by batch


def cached(captions: Sequence[str], components: Components, cache: Cache, clip_skip: int = 1, chunks: int = CHUNKS) -> Prompts:
    """From a table made before the training, for frozen text encoders."""
    encoders, unique, where = encoders_of(components), dict.fromkeys((None, *captions)), components.device
    with Turn(components, components.text_encoders) as turn:
        table = {caption: embedding(caption, components, cache, clip_skip, chunks, encoders, turn.begin) for caption in unique}
    if sum(row.context.nbytes for row in table.values()) <= RESIDENT:
        table = {caption: row.to(where) for caption, row in table.items()}
    return lambda batch: conditioning.cat(table[caption] for caption in batch).to(where)


def encoded(captions: Sequence[str], components: Components, clip_skip: int = 1, chunks: int = CHUNKS) -> Prompts:
    """By the text encoders as they are at the moment, with gradients. A dropped caption is told as zeros where the base knows
    them, and else as an empty one."""
    conditioning.check_clip_skip(components, clip_skip)
    device = components.device
    unique = dict.fromkeys(("", *captions))
    ids = {caption: [own.to(device) for own in conditioning.chunk_tokens(components, caption, chunks)] for caption in unique}

    def encode(batch: Sequence[str | None]) -> Conditioning:
        own = list(dict.fromkeys(caption or "" for caption in batch))  # a caption that occurs twice is encoded once
        states = conditioning.encode_chunks(components, [ids[caption] for caption in own], clip_skip)
        hint = states[torch.tensor([own.index(caption or "") for caption in batch], device=device)]
        if not components.zeros_for_empty or None not in batch:
            return hint
        return conditioning.masked(hint, torch.tensor([caption is not None for caption in batch], device=device))

    return encode
