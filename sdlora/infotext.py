"""The text that AUTOMATIC1111 puts into pictures: written from settings, and taken apart again.

A prompt, "Negative prompt: …", and a line of `Key: value` with commas between. Names, order and quoting are those of its version 1.10
(modules/processing.py create_infotext, modules/infotext_utils.py); pictures that other programs and versions wrote are read as well.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdlora.strength import strength

NEGATIVE = "Negative prompt:"
LEAST = 3  # fields make a line of settings; fewer are taken for a prompt
KEY = re.compile(r"\s*(\w[\w /-]*?)\s*:\s*")
END = re.compile(r"\s*(?:,|$)")
FORBIDDEN = str.maketrans("", "", ":,")  # not in names of models and adapters, where AUTOMATIC1111 takes them out too
SCHEDULES = {"sgm_uniform": "SGM Uniform", "ddim": "DDIM", "lcm": "LCM", "beta_timesteps": "Beta timesteps"}
CONTENTS = {"fill": "fill", "noise": "latent noise", "nothing": "latent nothing"}  # what a masked part starts from; original is not written
RESIZES = {"fit": "Resize and fill", "stretch": "Just resize"}  # A1111's words, which it does not write; nor are crop and the next two its
SOURCES = {"cpu": "CPU", "cuda": "NV"}  # what its RNG is called; its own default, GPU, is not written


@dataclass(frozen=True)
class Infotext:
    prompt: str
    negative: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)  # in the order of the text, unquoted
    rest: str = ""  # what other programs wrote behind the settings

    @property
    def hashes(self) -> dict[str, str]:
        """The adapters' short hashes by name."""
        pairs = (pair.rpartition(":") for pair in self.fields.get("Lora hashes", "").split(","))
        return {name.strip(): digest.strip() for name, colon, digest in pairs if colon}


def written(settings: Mapping[str, Any]) -> str:
    """The settings of a picture (generation/record.py) as text."""
    lines = [settings["prompt"] + "".join(f" {tag}" for tag in _tags(settings.get("adapters", ())))]
    if settings.get("negative"):
        lines.append(f"{NEGATIVE} {settings['negative']}")
    found = {key: plain(value) for key, value in _fields(settings).items() if value is not None}
    lines.append(", ".join(f"{key}: {quoted(value)}" for key, value in found.items() if value))
    return "\n".join(lines)


def parsed(text: str) -> Infotext:
    """A text taken apart; without a line of settings it is all prompt."""
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    at = _settings_line(lines)
    prompts = lines[:at]
    border = next((i for i, line in enumerate(prompts) if line.startswith(NEGATIVE)), len(prompts))
    negative = "\n".join(prompts[border:]).removeprefix(NEGATIVE).removeprefix(" ")
    found = fields(lines[at]) if at < len(lines) else {}
    return Infotext("\n".join(prompts[:border]), negative, found, "\n".join(lines[at + 1 :]).strip())


def fields(line: str) -> dict[str, str]:
    """The `Key: value` of a line. Values may be JSON strings, objects or lists; a piece that is no field is passed over."""
    found: dict[str, str] = {}
    position = 0
    while position < len(line):
        if match := KEY.match(line, position):
            value, position = _value(line, match.end())
            found.setdefault(match[1], value)
        else:
            position = _comma(line, position) + 1
    return found


def quoted(text: str) -> str:
    """AUTOMATIC1111's rule: what has a comma, colon or newline in it stands in JSON's quotes."""
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def plain(value: Any) -> str:
    """A number with all its digits, but 5 for 5.0."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def name_of(file: str) -> str:
    """What an adapter is called in tags and hashes: its file's name without the ending, and without what would end the tag."""
    return Path(file).stem.translate(FORBIDDEN).replace(">", "").replace("<", "")


def _settings_line(lines: Sequence[str]) -> int:
    """Its index: the last that begins with Steps, else the last line of all if it has fields enough; len(lines) without one."""
    for i in reversed(range(len(lines))):
        if lines[i].lstrip().startswith("Steps:") and len(fields(lines[i])) >= LEAST:
            return i
    return len(lines) - 1 if len(fields(lines[-1])) >= LEAST else len(lines)


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that begins at `start`, and where the next field does."""
    if line[start : start + 1] in ('"', "{", "["):
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(line, start)
        except ValueError:
            pass
        else:
            if closing := END.match(line, end):
                return value if isinstance(value, str) else line[start:end], closing.end()
    end = _comma(line, start)
    return line[start:end].strip(), end + 1


def _comma(line: str, start: int) -> int:
    found = line.find(",", start)
    return len(line) if found < 0 else found


def _tags(adapters: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of those that were given beside the prompt; it has the others' tags already."""
    return [f"<lora:{name_of(a['file'])}:{strength(a['strength'])}>" for a in adapters if "tag" not in a]


def _fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys in AUTOMATIC1111's order; None is left out."""
    get, base = settings.get, settings.get("base", {})
    vae = base.get("vae", {})
    ddim = get("sampler") == "DDIM"
    adapters = ((a.get("tag") or name_of(a["file"]), a.get("hash")) for a in get("adapters", ()))
    return {
        "Steps": get("steps"),
        "Sampler": get("sampler"),
        "Schedule type": _schedule(get("schedule")),
        "CFG scale": get("guidance"),
        "Seed": get("seed"),
        "Size": f"{settings['width']}x{settings['height']}" if "width" in settings and "height" in settings else None,
        "Model hash": base.get("model", base.get("hash", ""))[:10],
        "Model": base.get("name", "").translate(FORBIDDEN),
        "VAE hash": vae.get("hash", "")[:10],
        "VAE": vae.get("name", "").translate(FORBIDDEN),
        "Variation seed": get("variation_seed"),
        "Variation seed strength": get("variation_strength"),
        "Denoising strength": get("denoise", get("hires_denoise")),
        "Exact steps": get("exact_steps"),
        "Resize mode": RESIZES.get(get("resize", "")),
        "Background": get("background"),
        "Clip skip": get("clip_skip"),
        "ENSD": get("ensd"),
        "RNG": SOURCES.get(get("noise", "")),
        "Eta DDIM" if ddim else "Eta": get("eta"),
        "Sigma churn": get("s_churn"),
        "Sigma tmin": get("s_tmin"),
        "Sigma tmax": get("s_tmax"),
        "Sigma noise": get("s_noise"),
        "Hires upscale": get("hires"),
        "Hires steps": get("hires_steps"),
        "Hires upscaler": get("hires_upscaler"),
        "Mask blur": get("mask_blur"),
        "Soft mask": get("soft_mask"),
        "Inpaint area": "Only masked" if "only_masked" in settings else None,
        "Masked area padding": get("only_masked"),
        "Masked content": CONTENTS.get(get("masked_content", "")),
        "Lora hashes": ", ".join(f"{name.translate(FORBIDDEN)}: {digest}" for name, digest in adapters if digest),
        "Emphasis": get("emphasis"),
        "Version": get("version"),
    }


def _schedule(name: str | None) -> str | None:
    return name and SCHEDULES.get(name, name[:1].upper() + name[1:])
