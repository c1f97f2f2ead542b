"""What a single file is: its family and prediction type, from keys, shapes and markers; and by name what it is instead."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sdlora import recognise
from sdlora.checkpoints import unet
from sdlora.errors import SdloraError, nearest
from sdlora.families import EPSILON, FAMILIES, PREDICTIONS, Family, V
from sdlora.stored import Contents, Stored

CHANNELS = {  # of the U-Net's input, other than 4
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}
ARCHITECTURES = (  # how modelspec.architecture begins (stable-diffusion-xl-turbo-v1 is XL too), and the family; "" is none of ours
    ("stable-diffusion-v1", "sd1"),
    ("stable-diffusion-v2", "sd2"),
    ("stable-diffusion-xl", "sdxl"),
    *((other, "") for other in ("stable-diffusion", "stable-cascade", "stable-video", "flux", "auraflow", "pixart", "lumina", "hunyuan")),
)
TEXTS = {  # the prefixes of the text encoders' tensors, by family, in the order of the families' text encoders
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
POSITIONS = {  # their tensor (77, width)
    "sd1": (("text_model.embeddings.position_embedding.weight", "embeddings.position_embedding.weight"),),
    "sd2": (("positional_embedding",),),
    "sdxl": (("text_model.embeddings.position_embedding.weight",), ("positional_embedding",)),
}
REFINER = "conditioner.embedders.0.model."
BASE_STEPS = 875_000  # `global_step` of Stable Diffusion 2.0's 512-base-ema.ckpt, which predicts ε

Get = Callable[[str], Stored]  # a tensor by its key, the averaged one where the file has only that; KeyError where there is none


@dataclass(frozen=True)
class Prediction:
    """What the U-Net says of a noisy latent. `kind` None: the file does not tell, and the family has both."""

    kind: str | None
    zero_snr: bool  # trained with ᾱ that ends in pure noise
    why: str  # where that was found


def getter(tensors: Mapping[str, Stored]) -> Get:
    def get(key: str) -> Stored:
        return tensors[key] if key in tensors else tensors[unet.averaged(key)]

    return get


def starts(tensors: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def family_of(file: Contents, wanted: str | None = None) -> Family:
    """The family, from the keys of text encoders and U-Net; SdloraError where they contradict each other, `wanted` or the header."""
    where, tensors = file.path, file.tensors
    _refuse(file)
    found = [name for name, prefixes in TEXTS.items() if all(starts(tensors, prefix) for prefix in prefixes)]
    if not found:
        raise SdloraError(f"{where} has a U-Net but not all text encoders; give the whole checkpoint, U-Net, text encoders and VAE in one")
    if len(found) > 1:
        both = " and ".join(FAMILIES[name].title for name in found)
        raise SdloraError(f"{where} holds the text encoders of {both}: the files of two models were mixed; fetch it again")
    family = FAMILIES[found[0]]
    _agree(file, family)
    if wanted is not None and wanted not in FAMILIES:
        raise SdloraError(f"unknown family {wanted!r}{nearest(wanted, FAMILIES)}")
    if wanted not in (None, family.name):
        raise SdloraError(f"{where} is {family.title} ({family.name}) by its keys and shapes, not {wanted}; leave out the family")
    return family


def _refuse(file: Contents) -> None:
    """SdloraError for a file that is something else than a base model of the families here, by name."""
    keys = file.tensors
    what = recognise.what(keys)
    if what == recognise.ADAPTER:
        raise SdloraError(f"{file.path} is {what}, not a base model; give it as --adapter")
    if what:
        raise SdloraError(f"{file.path} is {what}; the bases that sdlora knows are {', '.join(f.title for f in FAMILIES.values())}")
    if not (starts(keys, unet.PREFIX) or starts(keys, unet.EMA + "diffusion_model")):
        raise SdloraError(f"{file.path} {_without_unet(keys)}")
    try:
        channels = getter(keys)(unet.PREFIX + "input_blocks.0.0.weight").shape[1]
    except (KeyError, IndexError):
        raise SdloraError(
            f"{file.path} has no first convolution ({unet.PREFIX}input_blocks.0.0.weight): cut off or renamed; fetch it again"
        ) from None
    if channels in CHANNELS:
        raise SdloraError(f"{file.path} is {CHANNELS[channels]} (its U-Net takes {channels} channels); only plain base models will do")
    if channels != 4:
        raise SdloraError(
            f"{file.path}: the U-Net takes {channels} channels, not 4: no model that sdlora knows; only plain base models will do"
        )
    if starts(keys, REFINER):
        raise SdloraError(f"{file.path} is the Stable Diffusion XL refiner, which is no base model; use the base checkpoint")


def _without_unet(keys: Iterable[str]) -> str:
    if starts(keys, "encoder.down") and starts(keys, "decoder.up"):
        return "is a VAE alone; give a base model, and this as its VAE"
    if starts(keys, "down_blocks.") or starts(keys, "text_model."):
        return "is one part of a folder in diffusers' layout; give the folder with model_index.json"
    if starts(keys, "input_blocks."):
        return f"is a U-Net alone (keys without {unet.PREFIX}); give the whole checkpoint"
    return f"has no U-Net: no key begins with {unet.PREFIX}; it is no Stable Diffusion checkpoint, or its keys were renamed"


def _agree(file: Contents, family: Family) -> None:
    """SdloraError where the U-Net is not of the text encoders' family."""
    get = getter(file.tensors)
    keys = [key for key in file.tensors if key.startswith((unet.PREFIX, unet.EMA))]
    sized = any("label_emb" in key for key in keys)
    linear, width = _attention(file.tensors, keys)
    told = f"{file.path}: the text encoders are of {family.title}"
    if sized != family.pooled:
        if family.name == "sd2":
            raise SdloraError(f"{file.path} is Stable unCLIP (its U-Net takes an image embedding); only plain base models will do")
        raise SdloraError(f"{told}, but its U-Net {'takes' if sized else 'does not take'} sizes: a mixture of two models; fetch it again")
    if linear != family.linear:
        raise SdloraError(
            f"{told}, but its U-Net projects with {'matrices' if linear else 'convolutions'}: a mixture of two models; fetch it again"
        )
    said = sum(_width(get, prefix, paths) for prefix, paths in zip(TEXTS[family.name], POSITIONS[family.name], strict=True))
    if said != width:
        raise SdloraError(f"{told} and give {said} numbers a token, but its U-Net takes {width}: a mixture of two models; fetch it again")
    stated = file.metadata.get("modelspec.architecture", "").partition("/")[0]
    owner = next((name for start, name in ARCHITECTURES if stated.lower().startswith(start)), family.name)
    if owner != family.name:
        raise SdloraError(f"{file.path} is {family.title} by its keys, and its header says {stated}; correct modelspec.architecture")


def _attention(tensors: Mapping[str, Stored], keys: list[str]) -> tuple[bool, int]:
    """(whether the projections are matrices, the width of a token that the U-Net takes)."""
    projection = next((key for key in keys if re.search(r"\.?1\.?proj_in\.?weight$", key)), None)
    crossing = next((key for key in keys if re.search(r"attn2\.?to_k\.?weight$", key)), None)
    if projection is None or crossing is None:
        raise SdloraError("the U-Net has no attention to text: cut off, renamed, or no Stable Diffusion; fetch it again")
    return len(tensors[projection].shape) == 2, tensors[crossing].shape[1]


def _width(get: Get, prefix: str, paths: Iterable[str]) -> int:
    for path in paths:
        try:
            return get(prefix + path).shape[1]
        except KeyError:
            continue
    raise SdloraError(f"the text encoder under {prefix} has no position embedding: cut off or renamed; fetch the file again")


def prediction_of(file: Contents, family: Family, wanted: str | None = None) -> Prediction:
    """The prediction type: the user's word, else the file's markers, which must agree, else ε; for SD 2.x nothing without a marker."""
    if wanted is not None and wanted not in PREDICTIONS:
        raise SdloraError(f"unknown prediction type {wanted!r}{nearest(wanted, PREDICTIONS)}")
    zero_snr = "ztsnr" in file.tensors
    if wanted:
        _possible(file, wanted, zero_snr)
        return Prediction(wanted, zero_snr, "as you said")
    found = _markers(file)
    if len({kind for _, kind in found}) > 1:
        said = ", ".join(f"{source} says {kind}" for source, kind in found)
        raise SdloraError(f"{file.path} contradicts itself: {said}; give the prediction type yourself")
    if found:
        kind = found[0][1]
        _possible(file, kind, zero_snr)
        return Prediction(kind, zero_snr, " and ".join(source for source, _ in found))
    if zero_snr:
        raise SdloraError(f"{file.path} is marked ztsnr (pure noise at the end) but not v_pred; give the prediction type yourself")
    if family.name == "sd2":
        return Prediction(None, False, "the file does not say")
    return Prediction(EPSILON, False, f"no marker: {family.title}'s own")


def _possible(file: Contents, kind: str, zero_snr: bool) -> None:
    if zero_snr and kind == EPSILON:
        raise SdloraError(f"{file.path} is marked ztsnr, and ε cannot be predicted for pure noise; its prediction type is v_prediction")


def _markers(file: Contents) -> list[tuple[str, str]]:
    """(where, which) for all that says something of the prediction type."""
    found = [("the key v_pred", V)] if "v_pred" in file.tensors else []
    stated = file.metadata.get("modelspec.prediction_type", "").lower()
    words = {"v": V, "v_prediction": V, "v-prediction": V, "epsilon": EPSILON, "eps": EPSILON}
    if stated and stated not in words:
        raise SdloraError(f"{file.path}: modelspec.prediction_type is {stated!r}; sdlora knows epsilon and v")
    if stated:
        found.append(("modelspec.prediction_type", words[stated]))
    architecture = file.metadata.get("modelspec.architecture", "").partition("/")[0]
    if architecture in FAMILIES["sd2"].architectures:
        found.append(("modelspec.architecture", PREDICTIONS[FAMILIES["sd2"].architectures.index(architecture)]))
    if file.numbers.get("global_step") == BASE_STEPS:
        found.append((f"global_step {BASE_STEPS:,} of SD 2.0 base", EPSILON))
    return found
