"""What the U-Net is told about a sample: embeddings cached once, or, where the text encoder is trained, made anew each time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdlora.data import Cache
from sdlora.data.encode import embeddings
from sdlora.models import Components
from sdlora.training.batches import DROPPED

Conditioning = Callable[[Sequence[str]], Tensor]  # captions -> (n, 77, width)


def cached(captions: Sequence[str], components: Components, cache: Cache) -> Conditioning:
    """From a table made before the training, for a frozen text encoder."""
    rows = {caption: i for i, caption in enumerate(dict.fromkeys((DROPPED, *captions)))}
    table = embeddings(list(rows), components, cache).to(components.device)
    return lambda batch: table[torch.tensor([rows[caption] for caption in batch], device=table.device)]


def encoded(captions: Sequence[str], components: Components) -> Conditioning:
    """By the text encoder as it is at the moment, with gradients."""
    unique = list(dict.fromkeys((DROPPED, *captions)))
    tokenizer, encoder = components.tokenizer, components.text_encoder
    ids = tokenizer(unique, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt").input_ids
    table = dict(zip(unique, ids.to(components.device), strict=True))

    def encode(batch: Sequence[str]) -> Tensor:
        own = list(dict.fromkeys(batch))  # a caption that occurs twice is encoded once
        row = {caption: i for i, caption in enumerate(own)}
        states = encoder(torch.stack([table[caption] for caption in own])).last_hidden_state
        return states[torch.tensor([row[caption] for caption in batch], device=states.device)]

    return encode
