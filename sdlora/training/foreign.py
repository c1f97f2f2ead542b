"""kohya's ss_… fields as settings of ours; a field that is set and has no equivalent is named."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from sdlora.adapter import Adapter
from sdlora.apply.targets import TARGETS
from sdlora.errors import SdloraError
from sdlora.origin import header_family
from sdlora.training.config import COMPONENTS, component_of

Note = str
OFF = ("", "None", "False", "0", "0.0", "{}", "[]", "null")


def _true(text: str) -> bool:
    return text == "True"


ALIKE: dict[str, tuple[str, Callable[[str], Any]]] = {  # kohya's field -> (our setting, how its text is read)
    "ss_network_dim": ("rank", int),
    "ss_network_alpha": ("alpha", float),
    "ss_max_train_steps": ("steps", int),
    "ss_gradient_accumulation_steps": ("accumulate", int),
    "ss_lr_warmup_steps": ("warmup", int),
    "ss_max_grad_norm": ("clip", float),
    "ss_min_snr_gamma": ("min_snr", float),
    "ss_caption_dropout_rate": ("caption_dropout", float),
    "ss_seed": ("seed", int),
    "ss_gradient_checkpointing": ("gradient_checkpointing", _true),
    "ss_scale_weight_norms": ("max_norm", float),
    "ss_network_dropout": ("dropout.network", float),
    "ss_noise_offset": ("noise.offset", float),
    "ss_adaptive_noise_scale": ("noise.offset_adaptive", float),
    "ss_multires_noise_iterations": ("noise.pyramid_levels", int),
    "ss_ip_noise_gamma": ("noise.input_perturbation", float),
    "ss_zero_terminal_snr": ("noise.zero_snr", _true),
    "ss_shuffle_caption": ("shuffle_tags", _true),
    "ss_caption_tag_dropout_rate": ("tag_dropout", float),
    "ss_clip_skip": ("clip_skip", int),
    "ss_flip_aug": ("flip", _true),
    "ss_enable_bucket": ("buckets.on", _true),
}
READ = {  # taken into account below
    *("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_lr_scheduler", "ss_mixed_precision", "ss_optimizer", "ss_datasets"),
    *("ss_batch_size_per_device", "ss_total_batch_size", "ss_resolution", "ss_output_name", "ss_network_module", "ss_loss_type"),
    *("ss_huber_c", "ss_huber_schedule", "ss_debiased_estimation", "ss_multires_noise_discount", "ss_keep_tokens", "ss_random_crop"),
    *("ss_bucket_no_upscale",),
}
SILENT = re.compile(  # statistics, names, hashes, and what changes nothing of the result
    r"ss_(session_id|training_.*|num_.*|epoch|steps|tag_frequency|bucket_info|(reg_)?dataset_dirs|(new_)?(sd|vae)_.*|sd_scripts_.*|"
    r"cache_latents|lowram|v2|base_model_version|network_args|prior_loss_weight|max_token_length|(min|max)_bucket_reso|huber_scale)"
)
SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine", "cosine_with_restarts": "cosine_restarts"}
SCHEDULES |= {"linear": "linear", "polynomial": "polynomial", "rex": "rex", "inverse_sqrt": "inverse_sqrt"}
OPTIMIZERS = {"prodigy": "prodigy", "dadapt": "dadaptation", "schedulefree": "schedulefree", "adafactor": "adafactor", "lion": "lion"}
LOSSES = {"l1": "l1", "huber": "huber", "smooth_l1": "smooth_l1"}
PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def settings(metadata: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """(the settings, what could not be taken over in one line each) of an adapter by kohya's sd-scripts."""
    facts = dataset_facts(metadata) | dict(metadata)
    result: dict[str, Any] = {}
    for field, (name, parse) in ALIKE.items():
        if facts.get(field, "None") != "None":
            _put(result, name, _number(field, facts[field], parse))
    result["min_snr"] = result.get("min_snr", 0.0)
    result["stratified"] = False
    notes: list[Note] = []
    for part in (_learning, _schedule, _precision, _loss, _data, _layers):
        found, more = part(facts, adapter)
        for name, value in found.items():
            _put(result, name, value)
        notes += more
    notes += [f"{key} = {value} has no equivalent here" for key, value in sorted(metadata.items()) if _lost(key, value)]
    return result, tuple(notes)


def dataset_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """What kohya keeps of its first data set, by the names of runs without a data set file."""
    try:
        sets = json.loads(metadata.get("ss_datasets", "[]"))
    except ValueError:
        sets = []
    first = sets[0] if sets and isinstance(sets[0], dict) else {}
    return {f"ss_{name}": str(value) for name, value in first.items() if not isinstance(value, (dict, list)) or name == "resolution"}


def _lost(key: str, value: str) -> bool:
    known = key in ALIKE or key in READ or not key.startswith("ss_") or SILENT.fullmatch(key)
    return not known and value not in OFF


def _learning(facts: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], list[Note]]:
    result: dict[str, Any] = {}
    rate = next((facts[key] for key in ("ss_unet_lr", "ss_learning_rate") if facts.get(key, "None") not in OFF), None)
    if rate:
        result["learning_rate"] = _number("ss_learning_rate", rate, float)
    text = facts.get("ss_text_encoder_lr", "None").strip("[]").split(",")[0]
    if text not in OFF and any(not name.startswith("unet.") for name in adapter.layers):
        result["text_learning_rate"] = _number("ss_text_encoder_lr", text, float)
    optimizer = facts.get("ss_optimizer", "None")
    decay = re.search(r"weight_decay=([\d.e-]+)", optimizer)
    name = next((ours for theirs, ours in OPTIMIZERS.items() if theirs in optimizer.lower()), None)
    if name:  # first: AdamWScheduleFree is no AdamW
        return result | {"optimizer.name": name}, [f"ss_optimizer = {optimizer}: of its arguments none are taken over"]
    if "adamw" in optimizer.lower():
        result["weight_decay"] = float(decay[1]) if decay else 0.01
        plain = "8bit" not in optimizer.lower()
        return result, [] if plain else [f"ss_optimizer = {optimizer}: its moments are kept in 32 bits here"]
    return result, [] if optimizer in OFF else [f"ss_optimizer = {optimizer} has no equivalent here; AdamW takes its place"]


def _schedule(facts: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], list[Note]]:
    name = facts.get("ss_lr_scheduler", "None")
    if name in SCHEDULES:
        return {"schedule": SCHEDULES[name]}, []
    return {}, [] if name in OFF else [f"ss_lr_scheduler = {name} has no equivalent here; cosine takes its place"]


def _precision(facts: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], list[Note]]:
    name = facts.get("ss_mixed_precision", "None")
    return ({"precision": PRECISIONS[name]}, []) if name in PRECISIONS else ({}, [])


def _loss(facts: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], list[Note]]:
    result: dict[str, Any] = {}
    kind = facts.get("ss_loss_type", "None")
    if kind in LOSSES:
        result["loss.kind"] = LOSSES[kind]
    if kind in ("huber", "smooth_l1"):
        result["loss.huber_schedule"] = facts.get("ss_huber_schedule", "snr")
        result["loss.huber_c"] = _number("ss_huber_c", facts.get("ss_huber_c", "0.1"), float)
    if facts.get("ss_multires_noise_iterations", "None") not in OFF:
        result["noise.pyramid_discount"] = _number("ss_multires_noise_discount", facts.get("ss_multires_noise_discount", "0.3"), float)
    if facts.get("ss_debiased_estimation") != "True":
        return result, []
    weighed = facts.get("ss_min_snr_gamma", "None") not in OFF
    notes = ["ss_min_snr_gamma: kohya multiplied it with ss_debiased_estimation, which alone is taken"] if weighed else []
    return result | {"loss.weighting": "debiased", "min_snr": 0.0}, notes


def _data(facts: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], list[Note]]:
    result: dict[str, Any] = {}
    size = facts.get("ss_batch_size_per_device", "None")
    if size not in OFF:
        result["batch_size"] = _number("ss_batch_size_per_device", size, int)
    if facts.get("ss_random_crop") == "True":
        result["crop"] = "random"
    if facts.get("ss_enable_bucket") == "True" and facts.get("ss_bucket_no_upscale") == "True":
        result["buckets.upscale"] = False
    worded = facts.get("ss_shuffle_caption") == "True" or facts.get("ss_caption_tag_dropout_rate", "None") not in OFF
    if worded and facts.get("ss_keep_tokens", "None") not in OFF:
        result["keep_tokens"] = _number("ss_keep_tokens", facts["ss_keep_tokens"], int)
    family = header_family(facts)
    if family:
        result["family"] = family
    if facts.get("ss_output_name", "None") not in OFF:
        result["name"] = facts["ss_output_name"]
    sides = [int(side) for side in re.findall(r"\d+", facts.get("ss_resolution", ""))]
    if len(set(sides)) == 1:
        result["resolution"] = sides[0]
    wide = len(set(sides)) > 1
    return result, [
        f"ss_resolution = {facts['ss_resolution']}: the base's own size is taken, and buckets of as many pixels"
    ] if wide else []


def _layers(facts: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], list[Note]]:
    """Targets, and rank and α of each component, as the file's layers have them."""
    patterns = {target: re.compile(pattern) for target, pattern in TARGETS.items()}
    target_of = {name: next((t for t, p in patterns.items() if p.fullmatch(name)), None) for name in adapter.layers}
    targets = [target for target in TARGETS if target in target_of.values()]
    result: dict[str, Any] = {"targets": targets}
    odd = [name for name, target in target_of.items() if target is None]
    notes = [f"{len(odd)} of its layers, for example {odd[0]}, are no target here"] if odd else []
    common = _common(facts)
    for component in COMPONENTS:
        own = [adapter.layers[name] for name, target in target_of.items() if target and component_of(target) == component]
        sizes = {(update.rank, float(update.alpha)) for update in own}
        if len(sizes) == 1:
            size = sizes.pop()
            if size != common:  # else a rank given beside the header would have no effect
                result[component] = dict(zip(("rank", "alpha"), size, strict=True))
        elif sizes:
            notes.append(f"the layers of its {component} differ in rank or alpha; all get ss_network_dim and ss_network_alpha")
    return result, notes


def _common(facts: Mapping[str, str]) -> tuple[int, float] | None:
    """(rank, α) of all layers that have none of their own, as the header says."""
    rank, alpha = (facts.get(field, "None") for field in ("ss_network_dim", "ss_network_alpha"))
    return None if rank == "None" else (int(rank), float(rank if alpha == "None" else alpha))


def _put(result: dict[str, Any], name: str, value: Any) -> None:
    """`value` at the dotted name."""
    table, dot, rest = name.partition(".")
    if dot:
        _put(result.setdefault(table, {}), rest, value)
    else:
        result[name] = value


def _number(field: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise SdloraError(f"{field} in its header is {text!r}, which is not understood; give the settings in a file instead") from error
