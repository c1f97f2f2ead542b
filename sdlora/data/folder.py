"""An image folder as it comes: pictures and captions, sub-folders with repeats in their names or settings of their own, masks."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora import captions
from sdlora.data import metadata, pictures
from sdlora.data.metadata import Metadata
from sdlora.data.settings import DataSettings, Folder
from sdlora.errors import SdloraError, nearest

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MASK = "-masklabel"  # OneTrainer's: the mask of cat.jpg is cat-masklabel.png
REPEATS = re.compile(r"(\d{1,4})_(.+)")  # kohya's folder names
YEARS = range(1900, 2101)  # 2019_summer is a year's folder


@dataclass(frozen=True)
class Example:
    path: Path
    captions: tuple[str, ...]  # at least one; they take turns
    repeats: int = 1  # how often an epoch sees it
    weight: float = 1.0  # of its loss
    regular: bool = False  # a class picture, which counts as the prior's
    mask: Path | None = None  # a file whose brightness is the mask; the picture itself: its opacity is
    folder: str = ""  # where it lies, for messages

    @property
    def caption(self) -> str:
        return self.captions[0]

    @property
    def digest(self) -> str:
        """sha256 of the file's bytes."""
        return digest(self.path)


@dataclass(frozen=True)
class Entry:
    """A picture file that was found, not opened yet, and what its folder says of it."""

    path: Path
    folder: str
    repeats: int
    rule: Folder
    caption: str | None  # for want of its own
    tables: tuple[Metadata, ...]  # the nearest first


@dataclass(frozen=True)
class Found:
    """What a folder gives to train with."""

    examples: tuple[Example, ...]
    skipped: tuple[str, ...] = ()  # pictures that cannot be read, and why

    @property
    def images(self) -> list[Example]:
        return [example for example in self.examples if not example.regular]

    @property
    def regular(self) -> list[Example]:
        return [example for example in self.examples if example.regular]


def scan(folder: str | Path, caption: str | None = None) -> list[Example]:
    """The images of `folder` and their captions; `caption` serves those without one."""
    return list(gather(DataSettings(images=Path(folder), caption=caption)).examples)


def gather(settings: DataSettings) -> Found:
    """All pictures with their captions, in the order of their names, a folder's own before those of its sub-folders.

    Unreadable pictures are left out and told of. SdloraError for a folder without pictures, for a picture that lacks a caption or would
    share its file with another, and if `settings.strict` for an unreadable one.
    """
    examples, skipped, found = [], [], entries(settings)
    for one, other in shared_stems([entry.path for entry in found]):
        raise SdloraError(f"{one.name} and {other.name} in {one.parent} share a stem, and so a caption file; rename one")
    for entry in found:
        problem = pictures.problem(entry.path)
        if problem and settings.strict:
            raise SdloraError(problem)
        if problem:
            skipped.append(problem)
        else:
            examples.append(example(entry, settings))
    if all(one.regular for one in examples):
        why = skipped[0] if skipped else "all are class pictures"
        raise SdloraError(f"no picture in {settings.images} can be trained on: {why}; sdlora dataset tells all about the folder")
    if settings.masks == "files" and not any(one.mask for one in examples):
        raise SdloraError(f"masks is files, and {settings.images} has none; the mask of cat.jpg is cat{MASK}.png, white where it counts")
    return Found(tuple(examples), tuple(skipped))


def entries(settings: DataSettings) -> list[Entry]:
    """The picture files. SdloraError for a missing or empty folder."""
    root = existing(settings.images)
    rules = {_placed(root, rule): rule for rule in settings.folders}
    tables = (metadata.read(settings.metadata),) if settings.metadata else ()
    output = getattr(settings, "output", None)
    found = list(_entries(root, root, rules, tables, output))
    for path in (path for path in rules if not path.is_relative_to(root.absolute())):
        found += _entries(path, path, rules, tables, output)
    if settings.regularisation:
        regular = existing(settings.regularisation)
        rules.setdefault(regular.absolute(), Folder(path=str(regular), regularisation=True))
        found += _entries(regular, regular, rules, (), output)
    if not found:
        raise SdloraError(f"no images in {root}; put {', '.join(s[1:] for s in SUFFIXES)} files there")
    return found


def existing(folder: Path) -> Path:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise SdloraError(f"the image folder {folder} {what}; set images to a folder of pictures")
    return folder


def example(entry: Entry, settings: DataSettings) -> Example:
    """The picture with its captions, prefix and trigger in front of them. SdloraError if it has none."""
    rule = entry.rule
    found = captions.read(entry.path, settings.caption_lines) or next(filter(None, (table.of(entry.path) for table in entry.tables)), ())
    defaults = (rule.caption, None if rule.regularisation else settings.caption, entry.caption)
    fallback = next((caption for caption in defaults if caption is not None), None)
    if not found and fallback is None:
        raise SdloraError(
            f"{entry.path} has no caption: write what it shows into {entry.path.stem}.txt beside it, "
            'or set caption = "…" for all images without one'
        )
    texts = [rule.prefix + caption for caption in found or (str(fallback),)]
    texts = [captions.with_trigger(text, [rule.trigger] if rule.trigger else ()) for text in texts]
    if settings.insert_trigger and not rule.regularisation:
        texts = [captions.with_trigger(text, settings.triggers) for text in texts]
    mask = {"off": None, "alpha": entry.path, "files": mask_of(entry.path)}[settings.masks]
    return Example(entry.path, tuple(texts), entry.repeats, rule.weight, rule.regularisation, mask, entry.folder)


def mask_of(image: Path) -> Path | None:
    path = image.with_name(f"{image.stem}{MASK}.png")
    return path if path.is_file() else None


def fingerprint(examples: Sequence[Example]) -> str:
    """sha256 over the contents of images, captions and masks in their order; names and places do not count."""
    return hashlib.sha256("\n".join(map(_described, examples)).encode()).hexdigest()


def digest(path: Path) -> str:
    """sha256 of the file's bytes, read again only when its size or time of change is another."""
    try:
        status = path.stat()
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}") from error
    return _digest(path, status.st_mtime_ns, status.st_size)


def _described(one: Example) -> str:
    more = (one.captions[1:], one.repeats, one.weight, one.regular, digest(one.mask) if one.mask else None)
    return f"{one.digest} {one.caption}" + (f" {more}" if more != ((), 1, 1.0, False, None) else "")


def _entries(folder: Path, root: Path, rules: dict[Path, Folder], tables: tuple[Metadata, ...], output: Path | None) -> Iterator[Entry]:
    """Of `folder` and, after its own, of all below it. Hidden ones and the run folder are left out."""
    rule, (repeats, caption) = _rule(folder, root, rules), _named(folder, root)
    repeats = rule.repeats or repeats
    own = metadata.find(folder)
    tables = (own, *tables) if own else tables
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    name = root.name if folder == root else folder.relative_to(root).as_posix()
    stems = {path.stem for path in inside if path.suffix.lower() in SUFFIXES}
    for path in inside:
        wanted = path.suffix.lower() in SUFFIXES or (path.suffix.lower() in pictures.UNREAD and path.stem not in stems)
        if wanted and path.is_file() and not path.stem.endswith(MASK) and repeats:
            yield Entry(path, name, repeats, rule, caption, tables)
    for path in inside:
        if path.is_dir() and not (output and path.absolute() == Path(output).absolute()) and not _upwards(path):
            yield from _entries(path, root, rules, tables, output)


def _upwards(path: Path) -> bool:
    """Whether it is a link to a folder that it lies in: followed, it would give every picture some forty times."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _rule(folder: Path, root: Path, rules: dict[Path, Folder]) -> Folder:
    """The settings of the nearest folder, this one or above, that has some."""
    inner = folder.absolute()
    above = [inner, *inner.parents]
    return next((rules[path] for path in above[: above.index(root.absolute()) + 1] if path in rules), Folder(path="."))


def _named(folder: Path, root: Path) -> tuple[int, str | None]:
    """(repeats, caption for want of one) by the nearest folder's name that says so: 10_zwx cat. 0 leaves a folder out, as kohya does."""
    inner = folder.absolute()
    above = [inner, *inner.parents]
    for path in above[: above.index(root.absolute()) + 1]:
        match = REPEATS.fullmatch(path.name)
        if match and int(match[1]) not in YEARS:
            return int(match[1]), captions.plain(match[2].replace("_", " "))
    return 1, None


def _placed(root: Path, rule: Folder) -> Path:
    path = Path(root.absolute() / Path(rule.path).expanduser())
    path = root.absolute() if rule.path == "." else path
    if not path.is_dir():
        below = [inner.relative_to(root).as_posix() for inner in sorted(root.rglob("*")) if inner.is_dir()]
        hint = nearest(rule.path, below) if below else "; it has no sub-folders"
        raise SdloraError(f"folders names {rule.path!r}, which is no folder in {root}{hint}")
    return path


def shared_stems(found: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of pictures that would have the same caption file; those of kinds that are not read need none."""
    seen: dict[Path, Path] = {}
    read = [path for path in found if path.suffix.lower() not in pictures.UNREAD]
    return [(seen[stem], path) for path in read if seen.setdefault(stem := path.with_suffix(""), path) != path]


@lru_cache(maxsize=1 << 16)
def _digest(path: Path, modified: int, size: int) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}") from error
