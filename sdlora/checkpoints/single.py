"""A base model in one file with LDM's names, .safetensors or .ckpt: opened and written."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sdlora.checkpoints import build, clip, distilled, unet, vae
from sdlora.checkpoints.configs import fitted_text, fitted_unet, fitted_vae, packaged
from sdlora.checkpoints.identify import TEXTS, Prediction, family_of, getter, prediction_of
from sdlora.checkpoints.links import Link, given, taken
from sdlora.checkpoints.opened import Opened, kinds, skeletons
from sdlora.errors import SdloraError
from sdlora.families import Family, V
from sdlora.stored import Contents, Stored, contents, converted, write

SUFFIXES = (".safetensors", ".ckpt")
CONFIGS = "sdlora.configs"  # the key of a file's header under which the configurations stand that its tensors do not tell
TOLD = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
IDLE = re.compile(  # what checkpoints carry besides, and nothing here needs
    r"model_ema\..*|.*\.position_ids|.*\.logit_scale|v_pred|ztsnr|denoiser\.sigmas|scale_factor"
    r"|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|sqrt_(recip|recipm1)_alphas_cumprod"
    r"|log_one_minus_alphas_cumprod|betas|logvar|lvlb_weights|posterior_\w+|(first_stage_model\.)?loss\..*"
    r"|cond_stage_model\.model\.(transformer\.resblocks\.23\..*|text_projection)"
    r"|(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_projection(\.weight)?"
)


def opened(path: Path, family: str | None = None, prediction: str | None = None, config: Mapping[str, Any] | None = None) -> Opened:
    """The base model in the file `path`. `config`: its components' configurations, where the family's do not fit.

    SdloraError for a file that is no base model, contradicts itself or `family`, or is damaged.
    """
    file = contents(path)
    kind = family_of(file, family)
    foretold = prediction_of(file, kind, prediction)
    settings = _configs(file, kind, foretold, config)
    modules = skeletons(kind, settings, path)
    links = {component: links_of(kind, component, module, settings[component]) for component, module in modules.items()}
    found = finder(file.tensors)
    weights = {component: _weights(own, found) for component, own in links.items()}
    used = {key for own in links.values() for link in own if (key := _key(link.theirs, file.tensors))}
    return Opened(
        path,
        kind,
        foretold,
        settings["scheduler"],
        {component: settings[component] for component in modules},
        modules,
        weights,
        tuple(settings["pads"]),
        (path,),
        zeros_for_empty=kind.pooled,
        surplus=tuple(key for key in file.tensors if key not in used and not IDLE.fullmatch(key)),
        notes=_notes(file),
    )


def links_of(family: Family, component: str, module: Any, config: Mapping[str, Any]) -> list[Link]:
    """The file's tensor for each parameter of the component."""
    names = build.names(module)
    if component == "unet":
        return unet.links(names, config)
    if component == "vae":
        return vae.links(names, config)
    return text_links(family, component, names)


def text_links(family: Family, component: str, names: Any) -> list[Link]:
    prefix = TEXTS[family.name][[name for name, _ in family.text_encoders].index(component)]
    return (clip.open_clip_links if prefix.endswith(".model.") else clip.transformers_links)(names, prefix)


def _key(theirs: str, tensors: Mapping[str, Stored]) -> str | None:
    """The key that the file has for LDM's name: itself; the moving average's; or as older trainers wrote it, without a level."""
    alternatives = (theirs, unet.averaged(theirs), theirs.replace(".transformer.text_model.", ".transformer."))
    return next((key for key in alternatives if key in tensors), None)


def finder(tensors: Mapping[str, Stored]) -> Callable[[str], Stored | None]:
    def found(theirs: str) -> Stored | None:
        key = _key(theirs, tensors)
        return None if key is None else tensors[key]

    return found


def _weights(links: list[Link], found: Callable[[str], Stored | None]) -> dict[str, Stored]:
    pairs = ((link, found(link.theirs)) for link in links)
    return {link.ours: taken(link, stored) for link, stored in pairs if stored is not None}


def _configs(file: Contents, family: Family, prediction: Prediction, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The components' configurations: given, in the file's header, or the family's with the widths of the file's tensors."""
    settings = packaged(family.name, prediction.kind)
    settings["scheduler"]["rescale_betas_zero_snr"] = prediction.zero_snr
    own = config or _stated(file)
    if own:
        return settings | {component: settings[component] | dict(own[component]) for component in kinds(family) if component in own}
    distilled.refuse(file)
    try:
        return settings | fitted(file.tensors, family, settings)
    except (KeyError, IndexError) as error:
        raise SdloraError(f"{file.path} lacks {error} of {family.title}; it is cut off, renamed, or of another architecture") from None


def _stated(file: Contents) -> dict[str, Any] | None:
    try:
        stated = json.loads(file.metadata.get(CONFIGS, "null"))
    except ValueError as error:
        raise SdloraError(f"{file.path}: {CONFIGS} in its header is not JSON: {error}; convert the base anew") from error
    if stated is None or (isinstance(stated, dict) and all(isinstance(own, dict) for own in stated.values())):
        return stated
    raise SdloraError(f"{file.path}: {CONFIGS} in its header is no table of configurations; convert the base anew")


def fitted(tensors: Mapping[str, Stored], family: Family, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configurations `settings` of the family's components with the widths of a file's tensors; KeyError for what is missing."""
    found, get = finder(tensors), getter(tensors)
    result = {}
    for component, _ in family.text_encoders:
        projected = ("text_projection.weight",) if component != "text_encoder" else ()
        weights = _weights(text_links(family, component, (*TOLD, *projected)), found)
        result[component] = fitted_text(settings[component], {name: stored.shape for name, stored in weights.items()})
    pooled = result["text_encoder_2"]["projection_dim"] if family.pooled else None
    result["unet"] = fitted_unet(settings["unet"], lambda key: get(key).shape, pooled)
    if any(key.startswith(vae.PREFIX) for key in tensors):
        result["vae"] = fitted_vae(settings["vae"], lambda key: get(vae.PREFIX + key).shape)
    return result


def _notes(file: Contents) -> tuple[str, ...]:
    averaged = any(key.startswith(unet.EMA) for key in file.tensors)
    if not averaged:
        return ()
    if any(key.startswith(unet.PREFIX) for key in file.tensors):
        return ("holds a moving average (EMA) of the U-Net too, which is not used",)
    return ("holds only the moving average (EMA) of the U-Net, which is used",)


def export(base: Opened, path: Path, dtype: torch.dtype | None = None) -> None:
    """`base` as one .safetensors with LDM's names, in `dtype` or as it is; memory holds one tensor at a time."""
    tensors: dict[str, Stored] = {}
    for component, module in base.modules.items():
        tensors |= given(links_of(base.family, component, module, base.configs[component]), base.weights[component])
    if base.family.name == "sd2":
        tensors |= _last_layer(base, tensors)
    if base.prediction.kind == V and base.family.name != "sd2":
        tensors["v_pred"] = _constant(torch.zeros(0))
    if base.prediction.zero_snr:
        tensors["ztsnr"] = _constant(torch.zeros(0))
    if dtype:
        tensors = {key: converted(stored, dtype) for key, stored in tensors.items()}
    write(path, tensors, _header(base))


def _last_layer(base: Opened, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """OpenCLIP's last layer, its projection and scale, which SD 2.x does not use and some programs want to be there.

    The layer is a copy of the one before it, as in kohya's files.
    """
    prefix = TEXTS["sd2"][0]
    last = base.configs["text_encoder"]["num_hidden_layers"]
    before = f"{prefix}transformer.resblocks.{last - 1}."
    layer = {key.replace(before, f"{prefix}transformer.resblocks.{last}."): t for key, t in tensors.items() if key.startswith(before)}
    width, dtype = base.configs["text_encoder"]["hidden_size"], next(iter(layer.values())).dtype
    idle = {"text_projection": torch.eye(width, dtype=dtype), "logit_scale": torch.ones((), dtype=dtype)}
    return layer | {prefix + name: _constant(tensor) for name, tensor in idle.items()}


def _constant(tensor: torch.Tensor) -> Stored:
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _header(base: Opened) -> dict[str, str]:
    """modelspec's words, and the configurations: a file's tensors do not tell all of them (the number of heads, for example)."""
    kind = base.prediction.kind
    header = {"modelspec.sai_model_spec": "1.0.0", "modelspec.title": base.path.stem, CONFIGS: json.dumps(base.configs)}
    if kind:
        architecture = base.family.architecture(kind)
        header |= {"modelspec.architecture": architecture, "modelspec.prediction_type": "v" if kind == V else "epsilon"}
    return header
