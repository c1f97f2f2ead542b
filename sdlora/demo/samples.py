"""Where the sample image folders and their settings lie: in a checkout of the repository, not in the installed package."""

from dataclasses import dataclass
from pathlib import Path

import sdlora
from sdlora.errors import SdloraError

STYLE, CHARACTER = "emoji-style.toml", "emoji-robot.toml"  # in configs/
NOUN = "robot"  # what the character is; its captions say "a <trigger> robot"


@dataclass(frozen=True)
class Samples:
    """The settings files of the two trainings; they name the image folders."""

    style: Path
    character: Path


def find(folder: Path | None = None) -> Samples:
    """The samples in `folder`; by default in the checkout that sdlora runs from, or in the current folder."""
    places = [folder] if folder else [Path(sdlora.__file__).parents[1], Path.cwd()]
    for place in places:
        samples = Samples(place / "configs" / STYLE, place / "configs" / CHARACTER)
        if samples.style.is_file() and samples.character.is_file() and (place / "datasets").is_dir():
            return samples
    looked = " or ".join(str(place) for place in dict.fromkeys(places))
    raise SdloraError(
        f"the demo's samples (configs/{STYLE}, configs/{CHARACTER}, datasets/) are not in {looked}; "
        "run it inside a checkout of the repository, or give its folder with --samples"
    )
