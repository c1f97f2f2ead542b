"""A VAE of its own, beside the base model's: a folder in diffusers' layout, or one file with LDM's or diffusers' names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora import recognise
from sdlora.checkpoints import build, configs, folder, vae
from sdlora.checkpoints.links import taken
from sdlora.checkpoints.shards import weight_files
from sdlora.errors import SdloraError
from sdlora.families import Family
from sdlora.stored import Stored, contents

PREFIXES = (vae.PREFIX, "vae.", "")
KIND = "AutoencoderKL"


def opened(path: Path, family: Family) -> tuple[dict[str, Any], Any, dict[str, Stored], list[Path]]:
    """(configuration, the network on the meta device, its weights by name, their files) of the VAE at `path` for a base of `family`."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise SdloraError(f"there is no VAE at {path}; give a file or a folder")
    stored = contents(path).tensors
    prefix = next(p for p in PREFIXES if any(key.startswith(p) for key in stored))
    own = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    template = configs.packaged(family.name)["vae"]
    config = _fitted(path, template, own)
    module = build.skeleton(KIND, config)
    links = vae.links(build.names(module), config, prefix="")
    weights = {link.ours: taken(link, own[link.theirs]) for link in links if link.theirs in own}
    weights |= folder.fitting(module, own)
    build.check("vae", module, weights, path)
    return config, module, weights, [path]


def _folder(path: Path) -> tuple[dict[str, Any], Any, dict[str, Stored], list[Path]]:
    inner = path / "vae" if (path / "vae" / "config.json").is_file() else path
    config = folder.config_of(inner)
    if config.get("_class_name", KIND) != KIND:
        raise SdloraError(f"{inner} is a {config['_class_name']}, not an {KIND}; give the VAE's own folder or file")
    module, files = build.skeleton(KIND, config), weight_files(inner)
    weights, _ = folder.weights_of(module, files)
    build.check("vae", module, weights, inner)
    return config, module, weights, files


def _fitted(path: Path, template: Mapping[str, Any], own: Mapping[str, Stored]) -> dict[str, Any]:
    """The family's configuration with the widths of the file's tensors, whichever names these have."""
    names = {vae.name(name, template): name for name in build.names(build.skeleton(KIND, template))}

    def shape(theirs: str) -> tuple[int, ...]:
        return own[theirs if theirs in own else names[theirs]].shape

    try:
        return configs.fitted_vae(template, shape)
    except (KeyError, IndexError):
        what = recognise.what(own) or "no VAE of Stable Diffusion (it has no encoder and decoder by LDM's or diffusers' names)"
        raise SdloraError(f"{path} is {what}; give a VAE") from None
