"""Texts through one CLIP text encoder: emphasis, any length, clip skip. SDXL calls it once per encoder.

The order of things is AUTOMATIC1111's: tokens of the chunks → hidden states → weights → the mean of each call restored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import SdloraError, nearest
from sdlora.prompts.attention import EMPHASES, END_OF_CHUNK, Span, spans
from sdlora.prompts.chunks import Chunk, Marks, chunked, empty


@dataclass(frozen=True, eq=False)
class Encoded:
    context: Tensor  # (n, 77 k, width), k chunks for every text
    pooled: Tensor | None  # (n, width of the projection), of the first chunk; None where the encoder has no projection

    def row(self, i: int) -> "Encoded":
        """Of the i-th text alone."""
        return Encoded(self.context[i : i + 1], None if self.pooled is None else self.pooled[i : i + 1])


Hidden = tuple[Tensor, Tensor | None]  # of one chunk: (1, 77, width) and the pooled vector


@dataclass
class Memory:
    """What one encoder, as it stands (its adapters and all), made of the chunks it has seen: each is encoded once."""

    hidden: dict[Any, Hidden] = field(default_factory=dict)


def encode(
    tokenizer: Any,
    text_encoder: Any,
    texts: Sequence[str],
    clip_skip: int = 1,
    emphasis: str = "Original",
    final_norm: bool = True,
    memory: Memory | None = None,
) -> Encoded:
    """The texts of one prompt: one, or all of its schedule. They are padded with empty chunks to one length.

    clip_skip   1 is the last layer, n the n-th from the end
    emphasis    "Original": hidden states × weight, then × mean before / mean after over all texts of the call; "No norm": without
                the second; "Ignore": weights are 1; "None": brackets are text
    final_norm  whether an earlier layer passes the encoder's final norm: yes for SD 1.x and 2.x, no for SDXL, whose contexts are
                encode(…, clip_skip=2, final_norm=False) of each encoder. The last layer has always passed it

    Chunks run one by one, so that a text's numbers do not depend on its neighbours, but by the mean that "Original" shares.
    """
    check(emphasis, clip_skip, text_encoder)
    marks = marks_of(tokenizer)
    rows = [chunks_of(tokenizer, text, emphasis, marks) for text in texts]
    length = max(map(len, rows))
    rows = [chunks + [empty(marks)] * (length - len(chunks)) for chunks in rows]
    seen = memory if memory is not None else Memory()
    columns, pooled = [], None
    for column in zip(*rows, strict=True):  # the first chunk of every text, the second, …: a call each, in A1111's terms
        hidden = [_remembered(seen, tokenizer, text_encoder, chunk, clip_skip, final_norm) for chunk in column]
        columns.append(weighted(torch.cat([states for states, _ in hidden]), [chunk.weights for chunk in column], emphasis))
        if pooled is None:
            pooled = [vector for _, vector in hidden]
    vectors = [vector for vector in pooled or [] if vector is not None]
    return Encoded(torch.cat(columns, dim=1), torch.cat(vectors) if vectors else None)


def weighted(states: Tensor, weights: Sequence[Sequence[float]], emphasis: str = "Original") -> Tensor:
    """(n, tokens, width) × (n, tokens), in fp32, and the mean as it was before: one factor for all of `states`."""
    if emphasis in ("Ignore", "None") or all(w == 1 for row in weights for w in row):
        return states  # bit for bit
    before = states.float()
    after = before * torch.tensor(weights, device=states.device, dtype=torch.float32)[..., None]
    if emphasis == "Original":
        after = after * (before.mean() / after.mean())
    return after.to(states.dtype)


def chunks_of(tokenizer: Any, text: str, emphasis: str = "Original", marks: Marks | None = None) -> list[Chunk]:
    pieces = [Span(text, 1.0)] if emphasis == "None" else spans(text)
    tokens = tokenizer([piece.text for piece in pieces], truncation=False, add_special_tokens=False, verbose=False)["input_ids"]
    pairs = zip(pieces, tokens, strict=True)
    return chunked([None if piece == END_OF_CHUNK else (ids, piece.weight) for piece, ids in pairs], marks or marks_of(tokenizer))


def marks_of(tokenizer: Any) -> Marks:
    comma = tokenizer.convert_tokens_to_ids(",</w>")  # the unknown token's number where a vocabulary has no comma
    known = None if comma == tokenizer.unk_token_id else comma
    return Marks(tokenizer.bos_token_id, tokenizer.eos_token_id, known, tokenizer.model_max_length - 2)


def check(emphasis: str, clip_skip: int, text_encoder: Any) -> None:
    if emphasis not in EMPHASES:
        raise SdloraError(f"unknown emphasis {emphasis!r}{nearest(emphasis, EMPHASES)}")
    layers = text_encoder.config.num_hidden_layers
    if not 1 <= clip_skip <= layers:
        raise SdloraError(f"clip skip is {clip_skip}; this text encoder has {layers} layers: 1 is the last, {layers} the first")


def _remembered(memory: Memory, tokenizer: Any, text_encoder: Any, chunk: Chunk, clip_skip: int, final_norm: bool) -> Hidden:
    ids = padded(chunk.ids, tokenizer.eos_token_id, tokenizer.pad_token_id)
    key = (ids, clip_skip, final_norm)
    if key not in memory.hidden:
        memory.hidden[key] = _hidden(text_encoder, ids, clip_skip, final_norm)
    return memory.hidden[key]


def padded(ids: tuple[int, ...], end: int, pad: int) -> tuple[int, ...]:
    """SD 2.x and SDXL's second tokenizer have a token of their own behind the first end token."""
    first = ids.index(end) + 1
    return ids if end == pad else (*ids[:first], *[pad] * (len(ids) - first))


@torch.no_grad()
def _hidden(text_encoder: Any, ids: tuple[int, ...], clip_skip: int, final_norm: bool) -> Hidden:
    row = torch.tensor([ids], device=text_encoder.device)
    output = text_encoder(row, output_hidden_states=clip_skip > 1)
    states = output.last_hidden_state
    if clip_skip > 1:
        states = output.hidden_states[-clip_skip]
        if final_norm:
            states = getattr(text_encoder, "text_model", text_encoder).final_layer_norm(states)
    return states, getattr(output, "text_embeds", None)
