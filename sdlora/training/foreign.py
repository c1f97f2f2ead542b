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
    "ss_gradient_checkpointing": ("gradient_checkpointing", lambda text: text == "True"),
}
READ = {  # taken into account below
    *("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_lr_scheduler", "ss_mixed_precision", "ss_optimizer", "ss_datasets"),
    *("ss_batch_size_per_device", "ss_total_batch_size", "ss_flip_aug", "ss_resolution", "ss_output_name", "ss_network_module"),
}
SILENT = re.compile(  # statistics, names, hashes, and what changes nothing of the result
    r"ss_(session_id|training_.*|num_.*|epoch|steps|tag_frequency|bucket_info|(reg_)?dataset_dirs|(new_)?(sd|vae)_.*|sd_scripts_.*|"
    r"cache_latents|lowram|v2|base_model_version|network_args|prior_loss_weight|max_token_length|enable_bucket|"
    r"(min|max)_bucket_reso|bucket_no_upscale|keep_tokens|huber_.*|loss_type)"
)
SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"}
PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def settings(metadata: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """(the settings, what could not be taken over in one line each) of an adapter by kohya's sd-scripts."""
    facts = dataset_facts(metadata) | dict(metadata)
    result: dict[str, Any] = {}
    for field, (name, parse) in ALIKE.items():
        if facts.get(field, "None") != "None":
            result[name] = _number(field, facts[field], parse)
    result["min_snr"] = result.get("min_snr", 0.0)
    result["stratified"] = False
    notes: list[Note] = []
    for part in (_learning, _schedule, _precision, _data, _layers):
        found, more = part(facts, adapter)
        result |= found
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
    if "adamw" in optimizer.lower():
        result["weight_decay"] = float(decay[1]) if decay else 0.01
        plain = optimizer == "None" or "8bit" not in optimizer.lower()
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


def _data(facts: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], list[Note]]:
    result: dict[str, Any] = {}
    size = facts.get("ss_batch_size_per_device", "None")
    if size not in OFF:
        result["batch_size"] = _number("ss_batch_size_per_device", size, int)
    if facts.get("ss_flip_aug") == "True":
        result["flip"] = True
    family = header_family(facts)
    if family:
        result["family"] = family
    if facts.get("ss_output_name", "None") not in OFF:
        result["name"] = facts["ss_output_name"]
    sides = [int(side) for side in re.findall(r"\d+", facts.get("ss_resolution", ""))]
    if len(set(sides)) == 1:
        result["resolution"] = sides[0]
    wide = len(set(sides)) > 1
    return result, [f"ss_resolution = {facts['ss_resolution']}: pictures are square here, of the base's own size"] if wide else []


def _layers(facts: Mapping[str, str], adapter: Adapter) -> tuple[dict[str, Any], list[Note]]:
    """Targets, and rank and α of each component, as the file's layers have them."""
    patterns = {target: re.compile(pattern) for target, pattern in TARGETS.items()}
    target_of = {name: next((t for t, p in patterns.items() if p.fullmatch(name)), None) for name in adapter.layers}
    targets = [target for target in TARGETS if target in target_of.values()]
    result: dict[str, Any] = {"targets": targets}
    odd = [name for name, target in target_of.items() if target is None]
    notes = [f"{len(odd)} of its layers, for example {odd[0]}, are no target here"] if odd else []
    for component in COMPONENTS:
        own = [adapter.layers[name] for name, target in target_of.items() if target and component_of(target) == component]
        sizes = {(update.rank, float(update.alpha)) for update in own}
        if len(sizes) == 1:
            result[component] = dict(zip(("rank", "alpha"), sizes.pop(), strict=True))
        elif sizes:
            notes.append(f"the layers of its {component} differ in rank or alpha; all get ss_network_dim and ss_network_alpha")
    return result, notes


def _number(field: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise SdloraError(f"{field} in its header is {text!r}, which is not understood; give the settings in a file instead") from error
