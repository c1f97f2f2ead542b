"""All that an adapter file says and holds, as plain data for a table or JSON."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdlora.adapter import counts, size
from sdlora.files.reading import read_reported
from sdlora.origin import header_family, tags, title, triggers

WITHIN = {"down_blocks": 4, "up_blocks": 4, "mid_block": 3, "text_model": 4}  # how many words of a path name its block


def describe(path: str | Path) -> dict[str, Any]:
    """Report, sizes beside those of the full matrices, ‖ΔW‖ by block and by layer, trigger words and header of the file."""
    adapter, report = read_reported(path)
    norms = {name: update.norm for name, update in adapter.layers.items()}
    layers = [
        {
            "name": layer.name,
            "shape": list(layer.shape),
            "rank": layer.rank,
            "alpha": layer.alpha,
            "parameters": layer.parameters,
            "full": layer.full,
            "ratio": layer.ratio,
            "norm": norms[layer.name],
            "precision": str(adapter.layers[layer.name].a.dtype).removeprefix("torch."),
        }
        for layer in counts(adapter)
    ]
    full = sum(layer["full"] for layer in layers)
    return {
        "file": str(path),
        "kind": "LoRA",
        "dialect": report.dialect,
        "trainer": report.trainer,
        "family": report.family,
        "made_for": title(report.family) if report.family else None,
        "header_family": header_family(adapter.metadata),
        "components": dict(report.components),
        "ranks": dict(report.ranks),
        "alphas": dict(report.alphas),
        "precisions": sorted({layer["precision"] for layer in layers}),
        "parameters": adapter.parameters,
        "full": full,
        "ratio": adapter.parameters / full,
        "norm": _length(norms.values()),
        "triggers": triggers(adapter.metadata),
        "tags": dict(tags(adapter.metadata)),
        "embeddings": list(report.embeddings),
        "unknown": list(report.unknown),
        "blocks": blocks(adapter.layers, norms),
        "layers": layers,
        "metadata": dict(sorted(adapter.metadata.items())),
    }


def blocks(layers: Mapping[str, Any], norms: Mapping[str, float]) -> list[dict[str, Any]]:
    """Layers, ranks, parameters and ‖ΔW‖ of each block of the model; a block's norm is √Σ of its layers' squares."""
    groups: dict[str, list[str]] = {}
    for name in layers:
        groups.setdefault(block_of(name), []).append(name)
    return [
        {
            "name": block,
            "layers": len(own),
            "ranks": sorted({layers[name].rank for name in own}),
            "parameters": sum(size(layers[name]) for name in own),
            "norm": _length(norms[name] for name in own),
        }
        for block, own in sorted(groups.items(), key=lambda item: _natural(item[0]))
    ]


def block_of(name: str) -> str:
    """unet.down_blocks.1.attentions.0.proj_in -> unet.down_blocks.1.attentions.0; of a text encoder, its layer."""
    component, *path = name.split(".")
    return ".".join([component, *path[: WITHIN.get(path[0], 1)]])


def _length(norms: Iterable[float]) -> float:
    return math.hypot(*norms)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorted by this, layers.2 comes before layers.10."""
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in name.split(".")]
