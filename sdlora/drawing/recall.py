"""From a picture back to the settings that draw it again: sdlora's own exactly, AUTOMATIC1111's as far as they go.

What a picture asks for and this machine has not is an error; what sdlora does not know, or does otherwise, is a warning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import images, models
from sdlora.drawing import origins, places, reading
from sdlora.drawing.settings import PICTURE, scope
from sdlora.errors import SdloraError
from sdlora.generation import record
from sdlora.generation.noise import source_name
from sdlora.generation.upscale import upscaler
from sdlora.infotext import CONTENTS, FORBIDDEN, RESIZES, Infotext
from sdlora.models import Components
from sdlora.prompts import extract, library
from sdlora.strength import strength as strength_of

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
SILENT = {"Version", "User", "Hashes", "Lora hashes", "Model", "VAE"}  # used elsewhere here, or without a part in the picture
LATER = {"original_size", "crop", "target_size", "precision", "apply", *origins.NAMES}  # of the JSON: taken in a way of their own
READ = LATER | {"prompt", "seed", "base", "adapters", "version", "device"}


@dataclass(frozen=True)
class Recalled:
    """What a picture says."""

    settings: dict[str, Any]  # fields of Drawing
    warnings: tuple[str, ...] = ()
    source: str = ""  # the picture's name
    model: tuple[str, str] = ("", "")  # name and hash of the base it was drawn with
    vae: tuple[str, str] = ("", "")
    device: str = ""


def recalled(path: str | Path, folders: Sequence[str | Path] = (), given: Mapping[str, Any] | None = None) -> Recalled:
    """What it takes to draw `path` again. `given` are the settings that are said anew: what they replace is not looked for.

    SdloraError where the picture carries nothing, or an adapter, a base or a VAE is not to be found.
    """
    carried, said, pictures = images.carried(path), given or {}, dict[str, Any]()
    if carried.settings is not None and "prompt" in carried.settings:
        try:
            found, wanted = _own(carried.settings, Path(path).name), [_adapter(a) for a in carried.settings.get("adapters", [])]
            pictures = origins.found(carried.settings, Path(path), said)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise SdloraError(f"the settings in {path} are damaged ({error}); it cannot be drawn again") from error
    elif carried.text is not None:
        found, wanted = _foreign(carried.text, Path(path).name), _tagged(carried.text)
        origins.check(found.settings, said, found.source)
    else:
        raise SdloraError(f"{path} carries no settings: neither sdlora's nor AUTOMATIC1111's; many programs drop them on saving")
    settings = {**found.settings, **pictures, **_models(found, said)}
    if "base" in said:
        settings.pop("prediction", None)  # it was the other base's
    search = _Search(found.source, folders)
    if "adapter" not in said:
        settings["adapter"] = tuple(f"{search.file(a)}={a['strength']}" for a in wanted if "tag" not in a)
    if not {"prompt", "prompts"} & said.keys():
        tags = {a["tag"]: a for a in wanted if "tag" in a}
        settings["named"] = tuple((name, search.file(a)) for name, a in tags.items() if search.known(a, name))
    return Recalled(settings, (*found.warnings, *search.warnings), found.source, found.model, found.vae, found.device)


def check(found: Recalled, components: Components, given: Mapping[str, Any]) -> list[str]:
    """Warnings of what is not as it was when the picture was drawn. SdloraError if the base is another, unless `given` names it."""
    warnings = []
    name, digest = found.model
    if digest and not any(own.startswith(digest) for own in (components.hash, components.own_hash)):
        both = f"{found.source} was drawn with the base {name or '?'} ({digest[:10]}), and this is {components.name} "
        both += f"({(components.own_hash or components.hash)[:10]})"
        if "base" not in given and "vae" not in given:
            raise SdloraError(f"{both}; give the right one with --base, or this one to draw with it all the same")
        warnings.append(both)
    name, digest = found.vae
    if digest and not (components.vae_file and components.vae_file[1].startswith(digest)):
        here = components.vae_file[0] if components.vae_file else "the base's own"
        warnings.append(f"{found.source} was drawn with the VAE {name or '?'} ({digest[:10]}), and this is {here}; --vae gives one")
    if found.device and found.device != components.device.type:
        warnings.append(f"{found.source} was drawn on {found.device}, and this is {components.device.type}: last digits may differ")
    return warnings


# --- sdlora's own


def _own(carried: Mapping[str, Any], source: str) -> Recalled:
    """The settings of the JSON by Drawing's names."""
    names = set(scope(PICTURE))  # what a picture says of files and folders of this machine is not listened to
    taken = {key: value for key, value in carried.items() if key in names - READ}
    unknown = sorted(carried.keys() - names - READ)
    base = carried.get("base", {})
    sides = [carried.get("height"), carried.get("width")]
    for name, key in (("original", "original_size"), ("crop", "crop"), ("target", "target_size")):
        if key in carried and (name == "crop" or list(carried[key]) != sides):  # else it follows the picture's own size
            taken[name] = "x".join(str(int(number)) for number in carried[key])
    taken |= {"apply": carried["apply"]} if "apply" in carried else {}
    taken |= {"precision": PRECISIONS.get(carried["precision"], carried["precision"])} if "precision" in carried else {}
    taken |= {key: base[key] for key in ("prediction", "tiling") if key in base}
    said = {**taken, "prompt": [str(carried["prompt"])], "seed": str(int(carried["seed"]))}
    settings = reading.checked(said, f"in {source}", Path.cwd())
    warnings = tuple(f"{source} has the setting {key}, which this version of sdlora does not know; it is left out" for key in unknown)
    vae = base.get("vae", {})
    model = base.get("name", ""), base.get("model") or base.get("hash", "")
    return Recalled(settings, warnings, source, model, (vae.get("name", ""), vae.get("hash", "")), carried.get("device", ""))


def _adapter(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON says of an adapter: its file's name, its strength, its hash, and the tag that it stands in the prompt by."""
    strength = str(strength_of(said["strength"]))
    return {"file": str(said["file"]), "strength": strength, "hash": str(said.get("hash", ""))} | (
        {"tag": said["tag"]} if "tag" in said else {}
    )


# --- AUTOMATIC1111's

Reader = Callable[[str], Mapping[str, Any]]


def _as(name: str, kind: Callable[[str], Any] = str) -> Reader:
    return lambda text: {name: kind(text)}


def _size(text: str) -> dict[str, Any]:
    width, _, height = text.partition("x")
    return {"width": int(width), "height": int(height)}


TRUTHS = {"True": True, "False": False}
FIELDS: dict[str, Reader] = {  # what AUTOMATIC1111 calls it -> Drawing's settings
    "Steps": _as("steps", int),
    "Sampler": _as("sampler"),
    "Schedule type": _as("schedule"),
    "CFG scale": _as("guidance", float),
    "Seed": _as("seed", lambda text: str(int(text))),
    "Size": _size,
    "Clip skip": _as("clip_skip", int),
    "RNG": _as("noise", source_name),
    "Eta": _as("eta", float),
    "Eta DDIM": _as("eta", float),
    "Sigma churn": _as("s_churn", float),
    "Sigma tmin": _as("s_tmin", float),
    "Sigma tmax": _as("s_tmax", float),
    "Sigma noise": _as("s_noise", float),
    "Emphasis": _as("emphasis"),
    "ENSD": _as("ensd", int),
    "Variation seed": _as("variation_seed", int),
    "Variation seed strength": _as("variation_strength", float),
    "Denoising strength": _as("denoise", float),  # of the second pass, where there is one: see _foreign
    "Hires upscale": _as("hires", float),
    "Hires steps": _as("hires_steps", int),
    "Hires upscaler": _as("hires_upscaler", lambda text: upscaler(text).name),
    "Exact steps": _as("exact_steps", TRUTHS.__getitem__),
    "Resize mode": _as("resize", ({"Crop and resize": "crop"} | {word: name for name, word in RESIZES.items()}).__getitem__),
    "Background": _as("background"),
    "Mask blur": _as("mask_blur", float),
    "Soft mask": _as("soft_mask", TRUTHS.__getitem__),
    "Inpaint area": lambda text: {},
    "Masked area padding": _as("only_masked", int),
    "Masked content": _as("masked_content", ({"original": "original"} | {word: name for name, word in CONTENTS.items()}).__getitem__),
    "Model hash": lambda text: {},
    "VAE hash": lambda text: {},
}


def _foreign(text: Infotext, source: str) -> Recalled:
    """The settings of an infotext. Fields that are not known, or not readable, are warnings."""
    names = set(scope(PICTURE))
    own = text.fields.get("Version", "").startswith("sdlora")
    settings: dict[str, Any] = {"noise": "cpu" if own else "cuda"}  # without the word RNG, AUTOMATIC1111 draws on a GPU
    settings |= {"prompt": (text.prompt,), "negative": text.negative}
    warnings = []
    for key, value in text.fields.items():
        if key in SILENT:
            continue
        try:
            found = FIELDS[key](value)
        except KeyError:  # an unknown field, or an unknown word for its value
            warnings.append(f"{source} says {key}: {value[:60]}, which sdlora has no setting for; it is left out")
        except (ValueError, SdloraError):
            warnings.append(f"{source} says {key}: {value[:60]}, which cannot be read; it is left out")
        else:
            settings |= {name: given for name, given in found.items() if name in names}
    if "denoise" in settings and any(key.startswith("Hires") for key in text.fields):
        settings["hires_denoise"] = settings.pop("denoise")  # one name for both, since AUTOMATIC1111 never has both
    if not own and "width" in settings:
        settings["floor"] = True
    if not own and settings.get("sampler") == "DDIM":
        warnings.append(
            f"{source} is by AUTOMATIC1111's DDIM, which leaves its last step out; sdlora's takes it, so that the picture differs a little"
        )
    if text.rest:
        warnings.append(f"{source} has further text behind its settings, which is left out: {text.rest.splitlines()[0][:60]}")
    if not text.fields:
        warnings.append(f"{source} carries a prompt and no settings; the defaults are taken")
    model = text.fields.get("Model", ""), text.fields.get("Model hash", "")
    vae = text.fields.get("VAE", ""), text.fields.get("VAE hash", "")
    return Recalled(settings, tuple(warnings), source, model, vae)


def _tagged(text: Infotext) -> list[dict[str, Any]]:
    """The prompt's tags, with the short hashes that the text has for them."""
    tags = extract(text.prompt).tags
    return [
        {"file": t.name, "tag": t.name, "strength": str(t.strength), "hash": text.hashes.get(t.name.translate(FORBIDDEN))} for t in tags
    ]


# --- what lies on the disk


def _models(found: Recalled, said: Mapping[str, Any]) -> dict[str, Any]:
    """Base and VAE by name or hash, unless they are `said`."""
    result: dict[str, Any] = {}
    name, digest = found.model
    if "base" not in said:
        if name not in models.BUILT_IN:
            place = places.seen(digest)
            if place is None:
                which = f"{name or '?'} ({digest[:10] or 'no hash'})"
                raise SdloraError(f"{found.source} was drawn with the base {which}, which is not known here; give it with --base")
            result["base"] = str(place)
        else:
            result["base"] = name
    if found.vae[1] and "vae" not in said and (place := places.seen(found.vae[1])):
        result["vae"] = place
    return result


class _Search:
    """Adapter files by their hash, each looked for once."""

    def __init__(self, source: str, folders: Sequence[str | Path]):
        self.source, self.folders = source, list(folders)
        self.files = library.listed(folders)
        self.warnings: list[str] = []

    def file(self, adapter: Mapping[str, Any]) -> Path:
        """The file with the adapter's tensors; SdloraError where there is none."""
        if (path := self._find(adapter)) is None:
            digest = adapter.get("hash") or "no hash"
            where = ", ".join(map(str, self.folders)) or "the places that sdlora knows"
            raise SdloraError(
                f"{self.source} was drawn with the adapter {adapter['file']} ({digest}), and no file in {where} is that; "
                "give its folder with --adapters, or other adapters with --adapter"
            )
        return path

    def known(self, adapter: Mapping[str, Any], name: str) -> bool:
        """Whether the file of a tag is to be looked for by its hash; else its name decides, with a warning if the contents are others."""
        if not adapter.get("hash"):
            return False
        if self._find(adapter) is None and (paths := self.files.get(name)):
            here = record.hashes(paths[0])["hash"]
            self.warnings.append(f"{self.source} was drawn with another {name} ({adapter['hash']}) than {paths[0]} ({here})")
            return False
        return True

    def _find(self, adapter: Mapping[str, Any]) -> Path | None:
        digest = adapter.get("hash")
        if not digest:
            return None
        stem = Path(adapter["file"]).stem
        alike = [path for name, paths in self.files.items() if name.lower() == stem.lower() for path in paths]
        others = [path for paths in self.files.values() for path in paths if path not in alike]
        remembered = [place] if (place := places.seen(digest)) else []
        return next((path for path in [*alike, *remembered, *others] if path.is_file() and record.hashes(path)["hash"] == digest), None)
