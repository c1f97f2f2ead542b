"""The init picture and the mask of an old picture: noted when it is drawn, and found again by their contents."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdlora.drawing import places
from sdlora.drawing.settings import NONE
from sdlora.errors import SdloraError
from sdlora.generation import Request
from sdlora.generation.sources import ALPHA, described

NAMES = ("init", "mask")
OF_A_MASK = {"mask_blur", "masked_content", "only_masked", "soft_mask"}


def remember(wanted: Iterable[Request]) -> None:
    """Where the files are, for `found`."""
    named = {source for request in wanted for source in (request.init, request.mask) if isinstance(source, str | Path)} - {ALPHA}
    if named:
        places.remember({described(source)["sha256"]: source for source in named if Path(source).is_file()})


def found(carried: Mapping[str, Any], picture: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """The files that `picture` was drawn from, unless they are `said`: beside it, here, or where they were last seen.

    SdloraError where one is nowhere to be found.
    """
    result: dict[str, Any] = {}
    if said.get("init") == NONE:
        return result
    for name in NAMES:
        told = carried.get(name)
        if told == ALPHA:
            result[name] = ALPHA
        elif told is not None and name not in said:
            path = _place(told, picture.parent)
            if path is None:
                what = f"{told['file'] or 'a picture in memory'} (sha256 {told['sha256'][:10]})"
                raise SdloraError(
                    f"{picture.name} was drawn with the {name} {what}, which is not to be found; give it with --{name}, or --{name} none"
                )
            result[name] = path if name == "init" else str(path)
    return result


def check(settings: Mapping[str, Any], said: Mapping[str, Any], source: str) -> None:
    """SdloraError for settings of an infotext, which carries no files, that need a picture which is not `said`."""
    if "denoise" in settings and "init" not in said:
        raise SdloraError(f"{source} was drawn from another picture, and AUTOMATIC1111's text does not say which; give it with --init")
    if OF_A_MASK & settings.keys() and "mask" not in said and said.get("init") != NONE:
        raise SdloraError(f"{source} was drawn with a mask, and AUTOMATIC1111's text does not say which; give it with --mask")


def _place(told: Mapping[str, Any], folder: Path) -> Path | None:
    near = [folder / told["file"], Path(told["file"])] if told.get("file") else []
    seen = places.seen(told["sha256"])
    for path in (*near, *([seen] if seen else [])):
        if path.is_file() and described(path)["sha256"] == told["sha256"]:
            return path
    return None
