"""The settings of a data set: which pictures, how they are cut, how their captions are worded. A part of the training's settings."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sdlora.config import NAME_OR_FOLDER, Settings
from sdlora.data.sizes import size
from sdlora.errors import SdloraError, nearest

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=8)]

SHARED, MEMORY = CACHES = ("shared", "memory")
LIMIT = "100GB"  # of a cache
CROP = {"crops": 4}  # defaults that only mean something with another setting
WORDINGS = {"keep_tokens": 0, "caption_variants": 16}


def _folder_in_words(value: object) -> object:
    """A path from Python as the text that names it: with a slash, since Path("./cache") has lost its own."""
    if not isinstance(value, Path):
        return value
    return str(value) if len(value.parts) > 1 or value.is_absolute() else f"./{value}"


class Folder(Settings):
    """What is different about one sub-folder of the images, and about all below it."""

    path: str  # seen from the image folder; "." is that folder itself
    repeats: Count | None = None  # how often an epoch sees each of its pictures; None: as its name says (10_cat), else once
    weight: Annotated[float, Field(gt=0)] = 1.0  # of its pictures' loss
    trigger: str = ""  # put in front of its captions that lack it
    prefix: str = ""  # put in front of all its captions
    caption: str | None = None  # for its pictures without one
    regularisation: bool = False  # class pictures: they count as the prior's, with prior.weight


class Buckets(Settings):
    """Every picture at the size, of about `resolution`² pixels, that loses least of it; off, all are cut to squares."""

    on: bool = True
    step: Pixels | None = None  # sides are multiples of it; None: the base's own multiple, and 64 for Stable Diffusion
    smallest: Pixels | None = None  # side; None: half the resolution
    largest: Pixels | None = None  # side; None: twice the resolution
    upscale: bool = True  # false: what is too small for its size gets a smaller one, and no picture is enlarged


class DataSettings(Settings):
    images: Path  # folder of pictures, with captions beside them or in a metadata.jsonl; sub-folders are read as well
    folders: tuple[Folder, ...] = ()  # tables [[folders]]: what is different about some of the sub-folders
    regularisation: Path | None = None  # another folder, of class pictures (kohya's reg_data_dir); see prior.weight
    metadata: Path | None = None  # captions in a metadata.jsonl or kohya's JSON; None: the one in the image folder, if any
    strict: bool = False  # refuse to train with an unreadable picture in the folder instead of leaving it out
    trigger: tuple[str, ...] | str = ()  # the word or words in the captions that call the adapter; recorded in the file
    insert_trigger: bool = False  # put the first trigger in front of captions that have none of them

    caption: str | None = None  # for images without one of their own
    caption_lines: bool = False  # every line of a caption file is a caption of its own, and they take turns
    shuffle_tags: bool = False  # what stands between commas, in another order each time
    keep_tokens: CountOrNone = 0  # so many tags at the front stay there and are never dropped; so does what stands before …
    keep_separator: str = "|||"  # … this in a caption, and what stands behind a second one
    tag_dropout: Share = 0.0  # share of the other tags that are left out, another choice each time
    caption_dropout: Share = 0.0  # share of samples that are trained with no caption at all
    caption_variants: Count = 16  # wordings of each caption (shuffled, dropped) that are made, encoded and take turns
    caption_chunks: Annotated[int, Field(ge=1, le=16)] = 3  # of 75 tokens; what is longer is cut
    clip_skip: Count = 1  # the text encoder's last layer is 1, the one before 2; SDXL has no choice

    resolution: Pixels | tuple[Pixels, ...] | None = None  # pixels, one or several: each picture at all; None: the base's own
    buckets: Buckets = Buckets()
    crop: Literal["centre", "random"] = "centre"  # what is cut off where the sides do not fit
    crops: Count = CROP["crops"]  # random crops of each picture that are made, encoded and take turns
    flip: bool = False  # mirror every other sample, by chance
    background: str = "white"  # behind transparent pixels: a name, or #rrggbb
    masks: Literal["off", "alpha", "files"] = "off"  # weigh the loss by transparency, or by NAME-masklabel.png beside the image
    # "shared" between all runs of this user, "memory" only, or a folder, for latents and embeddings
    cache: Annotated[str, BeforeValidator(_folder_in_words), NAME_OR_FOLDER] = SHARED
    cache_limit: str = LIMIT  # beyond it what is longest unused is deleted, after new pictures were encoded; "" keeps everything

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, value: str) -> str:
        from PIL import ImageColor

        try:
            ImageColor.getrgb(value)
        except ValueError:
            raise ValueError(f"{value!r} is no colour; take a name such as white, black or grey, or #rrggbb") from None
        return value

    @field_validator("cache")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if value not in CACHES and "/" not in value and "\\" not in value:
            raise ValueError(f"{value!r} is unknown{nearest(value, CACHES)}; a folder is written with a slash: ./{value}")
        return value

    @field_validator("cache_limit")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        if value:
            try:
                size(value, "it")
            except SdloraError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _data_settings_have_an_effect(self) -> "DataSettings":
        check_pictures(self)
        check_captions(self)
        return self

    @property
    def cache_bytes(self) -> int | None:
        """`cache_limit` as a number; None for no limit."""
        return size(self.cache_limit) if self.cache_limit else None

    @property
    def triggers(self) -> tuple[str, ...]:
        words = (self.trigger,) if isinstance(self.trigger, str) else self.trigger
        return tuple(word for word in words if word)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The sides that are asked for; none where that is left to the base."""
        if self.resolution is None:
            return ()
        return (self.resolution,) if isinstance(self.resolution, int) else self.resolution


def check_pictures(settings: DataSettings) -> None:
    """ValueError for settings of the pictures that contradict each other or change nothing."""
    if settings.cache == MEMORY:
        _idle(settings, {"cache_limit": LIMIT}, "with cache=memory, which keeps nothing on the disk")
    sides, buckets = settings.resolutions, settings.buckets
    if settings.resolution == () or len(set(sides)) < len(sides):
        raise ValueError(f"resolution is {list(sides)}; give one number, or several different ones")
    if settings.crop == "centre":
        _idle(settings, CROP, 'without crop = "random"')
    if not buckets.on:
        _idle(buckets, {name: field.default for name, field in Buckets.model_fields.items() if name != "on"}, "without buckets", "buckets.")
    low, high = buckets.smallest, buckets.largest
    if low and high and low > high:
        raise ValueError(f"buckets.smallest is {low} and buckets.largest {high}; the smallest side is the smaller one")
    for side in sides:
        if (low and low > side) or (high and high < side):
            raise ValueError(f"buckets.smallest and buckets.largest are {low} and {high}, and resolution {side} does not lie between them")
    paths = [str(Path(folder.path)) for folder in settings.folders]
    if len(set(paths)) < len(paths):
        raise ValueError(f"two tables [[folders]] have the path {max(paths, key=paths.count)!r}; make them one")


def check_captions(settings: DataSettings) -> None:
    """ValueError for settings of the captions that change nothing."""
    if not settings.shuffle_tags and not settings.tag_dropout:
        _idle(settings, WORDINGS, "without shuffle_tags or tag_dropout")
    if settings.insert_trigger and not settings.triggers:
        raise ValueError("insert_trigger has nothing to insert; set trigger as well")


def _idle(settings: Settings, defaults: dict[str, Any], why: str, prefix: str = "") -> None:
    for name, default in defaults.items():
        if getattr(settings, name) != default:
            raise ValueError(f"{prefix}{name} has no effect {why}; leave it out")
