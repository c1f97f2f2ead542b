"""A base model in diffusers' layout: opened and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdlora import texts
from sdlora.checkpoints import build, clip, configs, tokenizer, vae
from sdlora.checkpoints.identify import CHANNELS, Prediction
from sdlora.checkpoints.opened import Opened, kinds, skeletons
from sdlora.checkpoints.shards import weight_files
from sdlora.errors import SdloraError, nearest
from sdlora.families import EPSILON, FAMILIES, PREDICTIONS, Family
from sdlora.stored import Stored, contents, converted, write

INDEX = "model_index.json"
PIPELINES = {  # classes of models beside ours that go by another name
    "StableDiffusionXLImg2ImgPipeline": "the Stable Diffusion XL refiner",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusionXLInpaintPipeline": "an inpainting model",
    "StableUnCLIPPipeline": "Stable unCLIP",
    "StableUnCLIPImg2ImgPipeline": "Stable unCLIP",
    "LatentConsistencyModelPipeline": "a latent consistency model",
}


def opened(path: Path, family: str | None = None, prediction: str | None = None, variant: str | None = None) -> Opened:
    """The base model in the folder `path`. `variant`: "fp16" for `….fp16.safetensors`, which else are taken only where there are no others.

    SdloraError for a folder that is incomplete, of another kind of model, or not of `family`.
    """
    kind = family_of(path, family)
    schedule = read(path / "scheduler" / "scheduler_config.json")
    settings = {component: config_of(path / component) for component in kinds(kind)}
    _agree(path, kind, settings)
    files = {component: weight_files(path / component, variant) for component in settings}
    modules = skeletons(kind, settings, path)
    weights, surplus = {}, []
    for component, module in modules.items():
        weights[component], more = weights_of(module, files[component])
        surplus += [f"{component}.{name}" for name in more]
    zeros = kind.pooled and read(path / INDEX).get("force_zeros_for_empty_prompt", True)
    order = (*(name for name, _ in kind.text_encoders), "unet", "vae")
    return Opened(
        path,
        kind,
        prediction_of(path, schedule, prediction),
        schedule,
        settings,
        modules,
        weights,
        tuple(path / part for part in kind.tokenizers),
        tuple(file for component in order for file in files[component]),
        zeros_for_empty=zeros,
        surplus=tuple(surplus),
    )


def family_of(path: Path, wanted: str | None = None) -> Family:
    """By the pipeline's class and, where families share it, by the U-Net's projections; complete, or a SdloraError."""
    pipeline = read(path / INDEX).get("_class_name", "nothing")
    alike = [family for family in FAMILIES.values() if family.pipeline == pipeline]
    if not alike:
        known = ", ".join(dict.fromkeys(f.pipeline for f in FAMILIES.values()))
        what = f"{PIPELINES[pipeline]} (a {pipeline})" if str(pipeline) in PIPELINES else f"a {pipeline}"
        raise SdloraError(f"{path} is {what}; this version of sdlora knows {known}")
    for part in dict.fromkeys(part for family in alike for part in family.folders):
        if not (path / part).is_dir():
            raise SdloraError(f"the base model {path} has no folder {part}/; copy the whole model")
    config = config_of(path / "unet")
    channels, linear = config.get("in_channels", 4), bool(config.get("use_linear_projection", False))
    if channels != 4:
        what = CHANNELS.get(channels, "no model that sdlora knows")
        raise SdloraError(f"{path} is {what} (its U-Net takes {channels} channels); only plain base models will do")
    found = next((family for family in alike if family.linear == linear), None)
    if found is None:
        raise SdloraError(
            f"{path} is a {pipeline}, but its U-Net has {'' if linear else 'no '}linear projections: not {alike[0].title}; copy it anew"
        )
    if wanted is not None and wanted not in FAMILIES:
        raise SdloraError(f"unknown family {wanted!r}{nearest(wanted, FAMILIES)}")
    if wanted not in (None, found.name):
        raise SdloraError(f"{path} is {found.title} ({found.name}), not {wanted}; leave out the family")
    return found


def prediction_of(path: Path, schedule: Mapping[str, Any], wanted: str | None = None) -> Prediction:
    """The prediction type of scheduler_config.json, or the user's word."""
    stated = schedule.get("prediction_type", EPSILON)
    for kind in (stated, *filter(None, [wanted])):
        if kind not in PREDICTIONS:
            raise SdloraError(f"{path}: unknown prediction_type {kind!r}{nearest(kind, PREDICTIONS)}")
    kind, zero_snr = wanted or stated, bool(schedule.get("rescale_betas_zero_snr", False))
    if zero_snr and kind == EPSILON:
        raise SdloraError(
            f"{path}/scheduler: rescale_betas_zero_snr contradicts prediction_type epsilon (pure noise says nothing of the picture); "
            "set prediction_type to v_prediction, or take the rescaling out"
        )
    return Prediction(kind, zero_snr, "as you said" if wanted else "scheduler_config.json")


def _agree(path: Path, family: Family, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """SdloraError for a component of another class, and for a U-Net that is told other things than the text encoders say."""
    for component, kind in kinds(family).items():
        stated = settings[component].get("_class_name", kind)
        if not kind.startswith("CLIP") and stated != kind:
            raise SdloraError(f"{path / component} is of the class {stated}, not {kind}; give a plain base model")
    unet = settings["unet"]
    if (unet.get("addition_embed_type") == "text_time") != family.pooled:
        takes = f"its U-Net takes {'no ' if family.pooled else ''}sizes"
        raise SdloraError(f"{path} is a {family.pipeline}, but {takes}: a mixture of two models; copy the whole model anew")
    if unet.get("time_cond_proj_dim") is not None:
        raise SdloraError(f"{path} is a latent consistency model (its U-Net is told the guidance); only plain base models will do")
    widths: list[Any] = [settings[name].get("hidden_size") for name, _ in family.text_encoders]
    taken = unet.get("cross_attention_dim")
    if all(isinstance(width, int) for width in (*widths, taken)) and sum(widths) != taken:
        found = f"its text encoders say {sum(widths)} numbers a token, its U-Net takes {taken}: a mixture of two models"
        raise SdloraError(f"{path}: {found}; copy the whole model anew")


def config_of(folder: Path) -> dict[str, Any]:
    return read(folder / "config.json")


def read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}; the base model's folder is not complete") from error
    except ValueError as error:
        raise SdloraError(f"{path} is not valid JSON: {error}; copy the whole model anew") from error
    if not isinstance(found, dict):
        raise SdloraError(f"{path} is JSON, but no table of settings; copy the whole model")
    return found


def weights_of(module: Any, files: list[Path]) -> tuple[dict[str, Stored], list[str]]:
    """(plain name -> tensor, names in the files that the component has no place for)."""
    stored = {clip.plain(name): tensor for file in files for name, tensor in contents(file).tensors.items()}
    known = {key for name in build.names(module) for key in (name, vae.older(name))}
    return fitting(module, stored), [name for name in stored if name not in known and not name.endswith("position_ids")]


def fitting(module: Any, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors among `stored` that are the module's, by diffusers' names of today or of before 2023."""
    found = {}
    for name, shape in build.shapes(module).items():
        tensor = stored.get(name) or stored.get(vae.older(name))
        if tensor is not None:
            flat = tensor.shape == (*shape, 1, 1)  # the attention of old VAEs is 1 × 1 convolutions
            found[name] = tensor.then(shape, lambda t: t.reshape(t.shape[:2])) if flat else tensor
    return found


def export(base: Opened, folder: Path, dtype: torch.dtype | None = None) -> None:
    """`base` as a folder in diffusers' layout, in `dtype` or as it is; memory holds one tensor at a time.

    model_index.json comes last, so that a folder is a base model only when it is whole.
    """
    from diffusers import __version__

    base.check_vocabulary()
    index: dict[str, Any] = {"_class_name": base.family.pipeline, "_diffusers_version": __version__}
    for component, kind in kinds(base.family).items():
        library, stem = ("transformers", "model") if kind.startswith("CLIP") else ("diffusers", "diffusion_pytorch_model")
        own = {clip.plain(name): name for name in base.modules[component].state_dict()}
        weights = {own[name]: stored for name, stored in base.weights[component].items()}
        if dtype:
            weights = {name: converted(stored, dtype) for name, stored in weights.items()}
        write(folder / component / f"{stem}.safetensors", weights, {"format": "pt"})
        _write(folder / component / "config.json", _stated(base, component, kind))
        index[component] = [library, kind]
    for part, source in zip(base.family.tokenizers, base.tokenizers, strict=True):
        _tokenizer(folder / part, source)
        index[part] = ["transformers", "CLIPTokenizer"]
    schedule = _schedule(base)
    _write(folder / "scheduler" / "scheduler_config.json", schedule)
    index["scheduler"] = ["diffusers", schedule["_class_name"]]
    absent = ("feature_extractor", "image_encoder") if base.family.pooled else ("feature_extractor", "safety_checker")
    settings = {"force_zeros_for_empty_prompt": base.zeros_for_empty} if base.family.pooled else {"requires_safety_checker": False}
    _write(folder / INDEX, index | settings | {name: [None, None] for name in absent})


def _stated(base: Opened, component: str, kind: str) -> dict[str, Any]:
    config = base.configs[component]
    own = {"architectures": [kind], "model_type": "clip_text_model"} if kind.startswith("CLIP") else {"_class_name": kind}
    return own | config


def _schedule(base: Opened) -> dict[str, Any]:
    own = {"_class_name": configs.packaged(base.family.name)["scheduler"]["_class_name"], **base.schedule}
    kind = {"prediction_type": base.prediction.kind} if base.prediction.kind else {}
    return own | kind | {"rescale_betas_zero_snr": base.prediction.zero_snr}


def _tokenizer(folder: Path, source: Path | str) -> None:
    import shutil

    if isinstance(source, str):
        tokenizer.write(folder, source)
    else:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    texts.write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
