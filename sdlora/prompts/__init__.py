"""The prompt language of AUTOMATIC1111: tags → conditions (AND) → schedule (editing) → emphasis → chunks → the text encoder.

A prompt is never wrong: what is no group is text. Only a malformed <lora:…> is an error.
"""

from sdlora.prompts.attention import EMPHASES, Span, spans
from sdlora.prompts.chunks import Chunk, Marks, chunked
from sdlora.prompts.composition import Part, parts
from sdlora.prompts.editing import Entry, current, schedule
from sdlora.prompts.encode import Encoded, Memory, encode
from sdlora.prompts.tags import Tag, Tagged, extract

__all__ = [
    "EMPHASES",
    "Chunk",
    "Encoded",
    "Entry",
    "Marks",
    "Memory",
    "Part",
    "Span",
    "Tag",
    "Tagged",
    "chunked",
    "current",
    "encode",
    "extract",
    "parts",
    "schedule",
    "spans",
]
