"""From settings to requests: every prompt with every seed."""

from dataclasses import fields
from typing import Any

from sdlora.drawing.settings import NONE, PICTURE, Drawing, scope
from sdlora.errors import SdloraError
from sdlora.generation import Request, parse_adapter, parse_pair, parse_seeds

TRANSLATED = {"prompt", "seed", "adapter", "original", "crop", "target"}  # the others are Request's
PLAIN = tuple(name for name in scope(PICTURE) if name in {f.name for f in fields(Request)} - TRANSLATED)


def requests(drawing: Drawing) -> list[Request]:
    """Prompts outermost. SdloraError for what no picture can be drawn from."""
    if not drawing.prompt:
        raise SdloraError("there is no prompt; give one in quotes, or --from PICTURE, --settings FILE or --prompts FILE")
    return [Request(text, seed=seed, **_common(drawing)) for text in drawing.prompt for seed in parse_seeds(str(drawing.seed))]


def _common(drawing: Drawing) -> dict[str, Any]:
    """What the requests of a drawing have in common."""
    adapters = [parse_adapter(text) for text in drawing.adapter if text != NONE]
    return {
        **{name: getattr(drawing, name) for name in PLAIN},
        "adapters": tuple((str(path), eta) for path, eta in adapters),
        "original": parse_pair(drawing.original, "--original") if drawing.original else None,
        "crop": parse_pair(drawing.crop, "--crop"),
        "target": parse_pair(drawing.target, "--target") if drawing.target else None,
    }
