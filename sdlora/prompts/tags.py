"""`<lora:NAME:STRENGTH>` in a prompt: an adapter by the name of its file, and its strength in the grammar of sdlora/strength.py.

Tags belong to the whole prompt, wherever they stand, and are taken out of it before anything else is read. <lyco:…> is another spelling.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sdlora.errors import SdloraError
from sdlora.strength import Strength, parse

KINDS = ("lora", "lyco")
TAG = re.compile(r"<(\w+):([^>]+)>")
SLIP = re.compile(r"<\s*(?:lora|lyco)\b[^<>]*>?", re.IGNORECASE)


@dataclass(frozen=True)
class Tag:
    """An adapter that a prompt asks for; str(tag) is how it is written."""

    name: str
    strength: Strength

    def __str__(self) -> str:
        return f"<lora:{self.name}:{self.strength}>"


@dataclass(frozen=True)
class Tagged:
    text: str  # the prompt without its tags
    tags: tuple[Tag, ...]
    ignored: tuple[str, ...]  # tags for networks that sdlora has not, such as <hypernet:…>: taken out, as AUTOMATIC1111 does


def extract(prompt: str) -> Tagged:
    """The prompt and its tags apart. SdloraError for a <lora…> that is not well formed."""
    tags: list[Tag] = []
    ignored: list[str] = []

    def taken(match: re.Match[str]) -> str:
        if match[1] in KINDS:
            tags.append(_tag(match[0], match[2]))
        elif match[1].lower() in KINDS:
            raise SdloraError(f"{match[0]} in the prompt: write the tag in small letters, <lora:{match[2]}>")
        else:
            ignored.append(match[0])
        return ""

    text = TAG.sub(taken, prompt)
    if slip := SLIP.search(text):
        raise SdloraError(f"{slip[0].strip()[:60]!r} in the prompt is no complete tag; write <lora:NAME:0.8>, closed by >")
    once_each(tags)
    return Tagged(text, tuple(tags), tuple(ignored))


def refuse(negative: str) -> None:
    """SdloraError for a tag in a negative prompt, where it would do nothing."""
    tagged = extract(negative)
    if tagged.tags:
        raise SdloraError(f"{tagged.tags[0]} stands in the negative prompt; put it into the prompt: an adapter acts on both")


def once_each(tags: Sequence[Tag]) -> None:
    """SdloraError where one name stands in two tags: which of the strengths is meant cannot be known."""
    names = [tag.name for tag in tags]
    for name in names:
        if names.count(name) > 1:
            both = " and ".join(str(tag) for tag in tags if tag.name == name)
            raise SdloraError(f"the prompt has {both}; keep one of the tags")


def _tag(whole: str, inside: str) -> Tag:
    name, _, text = inside.partition(":")
    if not name.strip():
        raise SdloraError(f"{whole} in the prompt names no adapter; write <lora:NAME:0.8>")
    try:
        return Tag(name.strip(), parse(text) if text else Strength())
    except SdloraError as error:
        raise SdloraError(f"{whole} in the prompt: {error}") from error
