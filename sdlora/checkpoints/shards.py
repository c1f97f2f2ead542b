"""Which files of a folder in diffusers' layout hold a component's weights: one or all the parts of one, of the right variant."""

import re
from pathlib import Path

from sdlora.errors import SdloraError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = ("safetensors", "bin")  # the first that is there
NAME = re.compile(  # diffusers writes model.fp16-00001-of-00002.safetensors, transformers model-00001-of-00002.fp16.safetensors as well
    rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<before>[^.-]+))?(-(?P<part>\d+)-of-(?P<parts>\d+))?(\.(?P<behind>[^.-]+))?"
    rf"\.(?P<suffix>{'|'.join(SUFFIXES)})"
)

Group = dict[int, Path]  # number of the part (0: the whole) -> file


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """safetensors before pickles; a variant (`….fp16.safetensors`) where it is asked for, or where there is nothing else."""
    groups = _groups(folder)
    chosen = [key for key in groups if key[2] == (variant or "")]
    if variant and not chosen:
        raise SdloraError(f"{folder} has no weights of the variant {variant} (model.{variant}.safetensors); leave the variant out")
    chosen = chosen or list(groups)
    if not chosen:
        raise SdloraError(f"{folder} has no weights (model.safetensors or diffusion_pytorch_model.safetensors); copy the whole model")
    _, _, _, parts = min(chosen)
    group = groups[min(chosen)]
    missing = [number for number in range(1, parts + 1) if number not in group]
    if missing:
        name = next(iter(group.values())).name
        raise SdloraError(f"{folder} lacks part {missing[0]} of {parts} of its weights ({name} is there); copy the whole model")
    return [group[number] for number in sorted(group)]


def _groups(folder: Path) -> dict[tuple[int, int, str, int], Group]:
    """(rank of the suffix, of the stem, variant, number of parts) -> the files that belong together."""
    groups: dict[tuple[int, int, str, int], Group] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = NAME.fullmatch(path.name)
        if found:
            variant = found["before"] or found["behind"] or ""
            key = SUFFIXES.index(found["suffix"]), STEMS.index(found["stem"]), variant, int(found["parts"] or 0)
            groups.setdefault(key, {})[int(found["part"] or 0)] = path
    return groups
