"""A part of an adapter as an adapter of its own: the layers of some patterns, and a header that says whose part it is."""

import json
from collections.abc import Sequence
from pathlib import Path

from sdlora.adapter import Adapter
from sdlora.apply import patterns
from sdlora.errors import SdloraError

PART = "sdlora.part"  # {"of": the file's name, "blocks" or "without": patterns, "layers": how many of how many}


def divided(adapter: Adapter, blocks: Sequence[str], source: Path) -> tuple[Adapter, Adapter]:
    """(the layers that a pattern of `blocks` matches, all others). ΔW of both together is the adapter's, since layers share nothing.

    SdloraError for a pattern that matches no layer.
    """
    names = list(adapter.layers)
    try:
        chosen = set(patterns.selected(names, blocks))
    except SdloraError as error:
        raise SdloraError(str(error).replace("include: ", "--blocks: ", 1).replace("that is trained", f"of {source}", 1)) from error
    part, rest = ([name for name in names if (name in chosen) == inside] for inside in (True, False))
    return _part(adapter, part, source, {"blocks": list(blocks)}), _part(adapter, rest, source, {"without": list(blocks)})


def _part(adapter: Adapter, names: Sequence[str], source: Path, which: dict[str, list[str]]) -> Adapter:
    layers = {name: adapter.layers[name] for name in names}
    facts = {"of": source.name, **which, "layers": [len(names), len(adapter.layers)]}
    metadata = {**adapter.metadata, PART: json.dumps(facts, ensure_ascii=False)}
    if layers and "ss_network_dim" in metadata:
        metadata["ss_network_dim"] = str(max(update.rank for update in layers.values()))
        metadata["ss_network_alpha"] = f"{max(update.alpha for update in layers.values()):g}"
    return Adapter(layers, metadata)
