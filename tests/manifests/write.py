"""The keys and shapes that other programs write, as text files beside this one: `python tests/manifests/write.py`.

Each is made by the program's own code on a model of the true topology: PEFT, diffusers and LyCORIS, all from PyPI. Where the
writer is no library (kohya's and OneTrainer's trainers, diffusers before 0.17), the names are made here and then held against
diffusers' reader for them, which has to find every layer. Lines: key, shape, precision; the first line is about the file as JSON.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "train"), str(HERE.parents[1])]

RANK = 2
LAYERS = r".*(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|conv_shortcut|time_emb_proj|samplers\.0\.conv)"
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
State = dict[str, Tensor]


def models(family: str) -> dict[str, Any]:
    """The short skeletons with weights."""
    import skeletons

    fresh = skeletons.short.__wrapped__(family)  # not the ones that tests share
    return {name: module.to_empty(device="cpu").requires_grad_(False) for name, module in fresh.items()}


def with_peft(modules: dict[str, Any], targets: Any = LAYERS) -> dict[str, Any]:
    from peft import LoraConfig

    for name, module in modules.items():
        module.add_adapter(LoraConfig(r=RANK, lora_alpha=1, target_modules=targets if name == "unet" else TEXT))
    return modules


def peft_states(family: str, targets: Any = LAYERS) -> dict[str, State]:
    from peft.utils import get_peft_model_state_dict

    return {name: get_peft_model_state_dict(module) for name, module in with_peft(models(family), targets).items()}


def prefixed(states: dict[str, State]) -> State:
    return {f"{component}.{key}": tensor for component, state in states.items() for key, tensor in state.items()}


def peft(family: str) -> State:
    """diffusers' training scripts of today."""
    return prefixed(peft_states(family))


def peft_infix(family: str) -> State:
    """A model's own state dict, with the adapter's name in the keys."""
    found = {name: module.state_dict() for name, module in with_peft(models(family), ATTENTION).items()}
    return {key: tensor for key, tensor in prefixed(found).items() if ".lora_" in key}


def peft_folder(family: str) -> State:
    """adapter_model.safetensors of get_peft_model(unet).save_pretrained."""
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(get_peft_model(models(family)["unet"], LoraConfig(r=RANK, target_modules=LAYERS)))


def diffusers_new(family: str) -> State:
    """diffusers' scripts since 0.22: attention by its own names, all else by PEFT's."""
    from diffusers.utils import convert_state_dict_to_diffusers

    return prefixed({name: convert_state_dict_to_diffusers(state) for name, state in peft_states(family).items()})


def diffusers_old(family: str) -> State:
    """LoRAAttnProcessor's state dicts (until 0.17), by the tables with which diffusers reads them."""
    from diffusers.utils.state_dict_utils import (
        DIFFUSERS_OLD_TO_PEFT,
        UNET_TO_DIFFUSERS,
        convert_state_dict,
        convert_unet_state_dict_to_peft,
    )

    result: State = {}
    for component, state in peft_states(family, ATTENTION).items():
        table = UNET_TO_DIFFUSERS if component == "unet" else DIFFUSERS_OLD_TO_PEFT
        inverse = {new: old for old, new in table.items() if "_lora." in old}
        own = {key: tensor for key, tensor in state.items() if ".mlp." not in key}
        renamed = convert_state_dict(own, inverse)
        back = convert_unet_state_dict_to_peft(renamed) if component == "unet" else convert_state_dict(renamed, DIFFUSERS_OLD_TO_PEFT)
        assert back.keys() == own.keys()
        if component == "unet":
            renamed = {re.sub(r"\.(to_\w+_lora)", r".processor.\1", key): tensor for key, tensor in renamed.items()}
        result |= prefixed({component: renamed})
    return result


def kohya_diffusers(family: str) -> State:
    """diffusers' own converter to kohya's keys, which calls every first text encoder lora_te1."""
    from diffusers.utils import convert_state_dict_to_kohya

    return convert_state_dict_to_kohya(peft(family))


def lycoris(family: str, algo: str = "lora", **settings: Any) -> State:
    """LyCORIS in kohya's trainer, on diffusers' networks. (Its preset `full` counts the time embedding twice in 4.1.3.)"""
    from lycoris.config import PRESET
    from lycoris.kohya import create_network

    PRESET["sd"] = {key: value for key, value in PRESET["full"].items() if key != "unet_target_module"}
    PRESET["sd"]["unet_target_module"] = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
    modules = models(family)
    unet = modules.pop("unet")
    encoders: Any = list(modules.values())
    encoders = encoders if len(encoders) > 1 else encoders[0]
    network = create_network(1.0, RANK, 1.0, None, encoders, unet, algo=algo, preset="sd", conv_dim=RANK, conv_alpha=1, **settings)
    network.apply_to(encoders, unet, True, True)
    return network.state_dict()


def attention_only(make: Callable[[], State]) -> State:
    """Few layers of a large state dict: as much as a refusal needs."""
    return {key: tensor for key, tensor in make().items() if "down_blocks_1_attentions_0" in key or "_0_mlp_fc1" in key}


def kohya_sgm(family: str) -> State:
    """kohya's SDXL files: LyCORIS's keys with sgm's block names, each of which diffusers has to lead back to its own layer."""
    from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers

    from sdlora.formats import names

    result: State = {}
    unet = models(family)["unet"]
    for key, tensor in lycoris(family).items():
        layer, _, end = key.partition(".")
        if layer.startswith("lora_unet_"):
            path = names.dotted(layer.removeprefix("lora_unet_"))
            new = f"lora_unet_{names.flat(names.to_ldm(path))}.{end}"
            mapped = _maybe_map_sgm_blocks_to_diffusers({new: tensor}, unet.config)
            theirs = {_convert_unet_lora_key(found) for found in mapped}
            assert end != "lora_down.weight" or theirs == {_convert_unet_lora_key(key)}, (key, new, theirs)
            key = new
        result[key] = tensor
    return result


def onetrainer(family: str) -> State:
    """OneTrainer's "omi" files (modules/util/convert/lora/convert_sdxl_lora.py), with a bundled embedding."""
    from sdlora.formats import kohya, names

    prefixes = {"unet": "unet", "text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    result: State = {"bundle_emb.<ink>.clip_l": torch.ones(3, 24), "bundle_emb.<ink>.clip_g": torch.ones(3, 40)}
    for key, tensor in lycoris(family).items():
        found = kohya.split(key)
        assert found is not None
        component, _, path = found[0].partition(".")
        path = names.to_ldm(path) if component == "unet" else path
        result[f"{prefixes[component]}.{path}.{key.partition('.')[2]}"] = tensor
    return result


def without_alpha(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if not key.endswith(".alpha")}


def flat_1x1(state: State) -> State:
    """1 × 1 convolutions stored as matrices, as some tools do."""
    return {key: tensor.flatten(1) if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) else tensor for key, tensor in state.items()}


def conv_pairs_whole(state: State) -> State:
    """Without the 3 × 3 ones, whose up matrices stay convolutions."""
    return flat_1x1({key: t for key, t in state.items() if not re.search(r"conv[12]|samplers|conv_in|conv_out", key)})


# file -> (family, dialect that is to be found, maker); a dialect that starts with ! is a kind that is refused
MANIFESTS: dict[str, tuple[str, str, Callable[[], State]]] = {
    "sd1-peft": ("sd1", "peft", lambda: peft("sd1")),
    "sd2-peft": ("sd2", "peft", lambda: peft("sd2")),
    "sdxl-peft": ("sdxl", "peft", lambda: peft("sdxl")),
    "sd1-peft-adapter-name": ("sd1", "peft", lambda: peft_infix("sd1")),
    "sd1-peft-folder": ("sd1", "peft", lambda: peft_folder("sd1")),
    "sd1-diffusers": ("sd1", "diffusers+peft", lambda: diffusers_new("sd1")),
    "sdxl-diffusers": ("sdxl", "diffusers+peft", lambda: diffusers_new("sdxl")),
    "sd1-diffusers-old": ("sd1", "diffusers-old", lambda: diffusers_old("sd1")),
    "sd1-kohya-by-diffusers": ("sd1", "kohya", lambda: kohya_diffusers("sd1")),
    "sdxl-kohya-by-diffusers": ("sdxl", "kohya", lambda: kohya_diffusers("sdxl")),
    "sd1-locon": ("sd1", "kohya", lambda: lycoris("sd1")),
    "sd1-locon-without-alpha": ("sd1", "kohya", lambda: without_alpha(lycoris("sd1"))),
    "sd1-kohya-1x1-as-matrices": ("sd1", "kohya", lambda: conv_pairs_whole(lycoris("sd1"))),
    "sd1-locon-tucker": ("sd1", "kohya", lambda: tucker("sd1")),
    "sd2-locon": ("sd2", "kohya", lambda: lycoris("sd2")),
    "sdxl-locon": ("sdxl", "kohya", lambda: lycoris("sdxl")),
    "sdxl-kohya-sgm": ("sdxl", "kohya-sgm", lambda: kohya_sgm("sdxl")),
    "sdxl-onetrainer": ("sdxl", "onetrainer", lambda: onetrainer("sdxl")),
    "refused-dora": ("sd1", "!DoRA", lambda: attention_only(lambda: lycoris("sd1", dora_wd=True))),
    "refused-loha": ("sd1", "!LoHa", lambda: attention_only(lambda: lycoris("sd1", "loha"))),
    "refused-lokr": ("sd1", "!LoKr", lambda: attention_only(lambda: lycoris("sd1", "lokr"))),
    "refused-glora": ("sd1", "!GLoRA", lambda: attention_only(lambda: lycoris("sd1", "glora"))),
    "refused-ia3": ("sd1", "!(IA)³", lambda: attention_only(lambda: lycoris("sd1", "ia3"))),
    "refused-full": ("sd1", "!full difference", lambda: attention_only(lambda: lycoris("sd1", "full"))),
    "refused-oft": ("sd1", "!OFT or BOFT", lambda: attention_only(lambda: lycoris("sd1", "diag-oft"))),
    "refused-norms": ("sd1", "!trained norm", lambda: norms("sd1")),
    "refused-peft-dora": ("sd1", "!DoRA", lambda: peft_dora("sd1")),
}


def tucker(family: str) -> State:
    return {key: t for key, t in lycoris(family, use_tucker=True).items() if "down_blocks_1_resnets_0" in key}


def norms(family: str) -> State:
    found = lycoris(family, train_norm=True)
    return {key: t for key, t in found.items() if "down_blocks_1_resnets_0" in key}


def peft_dora(family: str) -> State:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = models(family)["unet"]
    for parameter in unet.parameters():
        nn.init.ones_(parameter)
    unet.add_adapter(LoraConfig(r=RANK, use_dora=True, target_modules=r"down_blocks\.1\.attentions\.0\..*to_q"))
    return {f"unet.{key}": tensor for key, tensor in get_peft_model_state_dict(unet).items()}


def lines(family: str, dialect: str, state: State) -> Iterable[str]:
    yield json.dumps({"family": family, "dialect": dialect, "tensors": len(state)})
    for key, tensor in sorted(state.items()):
        yield f"{key} {'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"


def main() -> None:
    chosen = sys.argv[1:] or list(MANIFESTS)
    for name in chosen:
        family, dialect, make = MANIFESTS[name]
        torch.manual_seed(0)
        text = "\n".join(lines(family, dialect, make())) + "\n"
        (HERE / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"{name}: {text.count(chr(10)) - 1} tensors, {len(text) // 1024} KiB")


if __name__ == "__main__":
    main()
