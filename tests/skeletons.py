"""Models without weights (meta device): of true size from the package's configurations, and of true topology but small."""

from functools import lru_cache

from torch import nn

from bases import SPECS, clip
from sdlora.checkpoints import build, configs
from sdlora.families import FAMILIES

SHORT = {  # as SPECS, and with few layers: each kind of block is there once
    "sd1": SPECS["sd1"].unet,
    "sd2": SPECS["sd2"].unet,
    "sdxl": SPECS["sdxl"].unet | {"transformer_layers_per_block": (1, 1, 2)},
}


@lru_cache
def true_size(family: str) -> dict[str, nn.Module]:
    """U-Net and text encoders of a family, as Components.modules has them."""
    packaged = configs.packaged(family)
    encoders = {name: build.skeleton(kind, packaged[name]) for name, kind in FAMILIES[family].text_encoders}
    return {"unet": build.skeleton("UNet2DConditionModel", packaged["unet"]), **encoders}


@lru_cache
def networks(family: str) -> dict[str, nn.Module]:
    """The same and the VAE, as footprint.networks gives them."""
    return {**true_size(family), "vae": build.skeleton("AutoencoderKL", configs.packaged(family)["vae"])}


@lru_cache
def short(family: str) -> dict[str, nn.Module]:
    """The same layers by name and kind, narrow; two layers in each text encoder."""
    encoders = {}
    for (name, kind), settings in zip(FAMILIES[family].text_encoders, SPECS[family].encoders, strict=True):
        small = clip(2, settings["hidden_size"], 2, settings["hidden_act"], settings["projection_dim"])
        encoders[name] = build.skeleton(kind, small)
    return {"unet": build.skeleton("UNet2DConditionModel", SHORT[family]), **encoders}
