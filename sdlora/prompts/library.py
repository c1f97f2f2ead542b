"""Adapter files by name: the stem of a .safetensors file in one of some folders, subfolders included."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sdlora.errors import SdloraError, nearest

SUFFIX = ".safetensors"


def listed(folders: Iterable[str | Path]) -> dict[str, list[Path]]:
    """Stem -> its files, the folders in the order given. SdloraError for a folder that is none."""
    found: dict[str, list[Path]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise SdloraError(f"there is no folder {folder} to look for adapters in; give one with {SUFFIX} files")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() == SUFFIX and path.is_file():
                found.setdefault(path.stem, []).append(path)
    return found


def find(name: str, files: Mapping[str, Sequence[Path]], folders: Iterable[str | Path]) -> Path:
    """The file called `name`: letter by letter, else without regard to capitals. SdloraError says which folders were looked in."""
    stems = [name] if name in files else [stem for stem in files if stem.lower() == name.lower()]
    paths = [path for stem in stems for path in files[stem]]
    if len(paths) == 1:
        return paths[0]
    if paths:
        raise SdloraError(f"<lora:{name}> fits several files: {', '.join(map(str, paths))}; rename one")
    places = ", ".join(map(str, folders))
    if not places:
        raise SdloraError(f"<lora:{name}> in the prompt, and no folder to look in; give one with --adapters FOLDER")
    known = nearest(name, files) if files else "; there are no adapters at all"
    raise SdloraError(f"<lora:{name}> in the prompt: no {name}{SUFFIX} in {places}{known}")
