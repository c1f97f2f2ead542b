"""For which model family an adapter is, and which program made it: judged from its layers' names and shapes, and its header."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdlora.families import FAMILIES

TRANSFORMER = "transformer"  # no family of ours; told from the others only to say so
WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # of the text that the U-Net's cross-attention sees
_CROSS = re.compile(r"unet\..*\.attn2\.to_[kv]")
_XL = re.compile(r"text_encoder_2\.|unet\.add_embedding\.|unet\..*\.transformer_blocks\.[1-9]")
_SD = re.compile(r"unet\.(down_blocks\.(0\.attentions|3)|up_blocks\.(2\.attentions|3))\.")
_NO_UNET = re.compile(r"^transformer\.|(single_|joint_|double_)(transformer_)?blocks|^diffusion_model\.(blocks|layers)\.")
TRAINERS = {  # key of the header, or its beginning -> program; the first that fits
    "sdlora.": "sdlora",
    "ot_": "OneTrainer",
    "ss_network_module": "kohya's sd-scripts",
    "lora_adapter_metadata": "diffusers or PEFT",
}


def family_of(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> str | None:
    """A key of FAMILIES, or TRANSFORMER, or None where nothing tells. What the layers say goes before what the header says.

    `shapes`: canonical layer name -> shape of the weight, (out, in, …); of an adapter's layers or of a whole model's.
    """
    if any(_XL.match(name) for name in shapes):
        return "sdxl"
    for name, shape in shapes.items():
        if _CROSS.fullmatch(name) and shape[1] in WIDTHS:
            return WIDTHS[shape[1]]
    if any(_NO_UNET.search(name) for name in shapes):
        return TRANSFORMER
    said = header_family(metadata or {})
    if said:
        return said
    return "sd1" if any(_SD.match(name) for name in shapes) else None


def title(family: str | None) -> str:
    """For messages: "Stable Diffusion XL"."""
    if family in FAMILIES:
        return FAMILIES[family].title
    return "a diffusion transformer (Flux, SD 3, …)" if family == TRANSFORMER else "another model"


def trainer_of(metadata: Mapping[str, str], keys: Iterable[str] = ()) -> str | None:
    """The program that wrote the file, None where its header and its keys do not tell."""
    software = _software(metadata.get("software", ""))
    if software:
        return software
    if metadata.get("ss_network_module", "").startswith("lycoris"):
        return "kohya's sd-scripts with LyCORIS"
    for start, program in TRAINERS.items():
        if any(key.startswith(start) for key in metadata):
            return program
    return "OneTrainer" if any(key.startswith("bundle_emb.") for key in keys) else None


def triggers(metadata: Mapping[str, str], most: int = 10) -> list[str]:
    """The words that call the adapter: the header's trigger phrase, else its most frequent tags, at most `most`."""
    for key in ("modelspec.trigger_phrase", "trained_words"):
        words = [word.strip() for word in metadata.get(key, "").split(",") if word.strip()]
        if words:
            return words
    return [tag for tag, _ in tags(metadata)][:most]


def tags(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """kohya's ss_tag_frequency over all folders, the most frequent first."""
    total: dict[str, int] = {}
    folders = _json(metadata.get("ss_tag_frequency", "{}"))
    for counts in folders.values() if isinstance(folders, dict) else ():
        for tag, count in counts.items() if isinstance(counts, dict) else ():
            total[tag.strip()] = total.get(tag.strip(), 0) + (count if isinstance(count, int) else 0)
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))


def header_family(metadata: Mapping[str, str]) -> str | None:
    """What the header alone says, by kohya's or Stability's word."""
    version, architecture = metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", "")
    for family in FAMILIES.values():
        short = family.versions[0].partition("_base")[0]
        if version.startswith(short) or any(architecture.startswith(word) for word in family.architectures):
            return family.name
    return None


def _software(text: str) -> str | None:
    """ai-toolkit writes {"name": …, "repo": …, "version": …} there."""
    found = _json(text)
    return str(found["name"]) if isinstance(found, dict) and "name" in found else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
