"""What an adapter file says of itself, by the names that other programs read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdlora.families import FAMILIES

SETTINGS = "sdlora.settings"  # the header's key of the run's full settings, JSON


def header(
    layers: Mapping[str, Any],
    *,
    name: str,
    base: str,
    base_hash: str = "",
    family: str = "sd1",
    prediction: str = "epsilon",
    targets: Sequence[str] = (),
    triggers: Sequence[str] = (),
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None,
    resolution: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Metadata by the names that A1111, ComfyUI, kohya's tools (ss_…) and Stability's ModelSpec 1.0.1 (modelspec.…) read.

    `tag_frequency` is kohya's {folder: {tag: count}}; by default the trigger words, once each. `settings` is all else that
    made the adapter and has to be JSON. Layers of differing ranks: ss_network_dim and _alpha are the largest ones.
    """
    facts = FAMILIES[family]
    tags = tag_frequency if tag_frequency is not None else ({name: dict.fromkeys(triggers, 1)} if triggers else {})
    result = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(update.rank for update in layers.values())),
        "ss_network_alpha": _number(max(update.alpha for update in layers.values())),
        "ss_sd_model_name": base,
        "ss_base_model_version": facts.version(prediction),
        "ss_v2": str(family == "sd2"),
        "ss_output_name": name,
        "ss_tag_frequency": _compact(tags),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{facts.architecture(prediction)}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        "modelspec.trigger_phrase": ", ".join(triggers),
        "sdlora.base": base,
        "sdlora.base_hash": base_hash,
        "sdlora.targets": _compact(list(targets)),
        SETTINGS: _compact(dict(settings or {})),
    }
    if resolution is not None:
        result |= {"ss_resolution": f"({resolution}, {resolution})", "modelspec.resolution": f"{resolution}x{resolution}"}
    return result


def _number(value: float) -> str:
    """Kohya writes α = 8 as 8.0 and as 8 alike; whole numbers stay whole."""
    return str(int(value)) if value == int(value) else repr(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
