"""What is wrong with an image folder, found before any GPU is touched; and what each bucket gets and cuts off."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora import captions
from sdlora.data import folder, metadata, pictures, similar
from sdlora.data.buckets import Crop, Frames, Grid, framed
from sdlora.data.folder import Entry, Example
from sdlora.data.settings import DataSettings
from sdlora.errors import SdloraError
from sdlora.prompts.encode import chunks_of

KINDS = {  # what is found: its title, in the order of the table
    "unreadable": "cannot be decoded",
    "shared": "share one caption file",
    "missing": "no caption",
    "empty": "an empty caption file",
    "encoding": "a caption that is not UTF-8",
    "cut": "a caption that is too long: its end is cut off",
    "trigger": "captions without the trigger",
    "orphan": "captions without a picture",
    "duplicate": "the same picture",
    "similar": "nearly the same picture",
    "blank": "of one colour",
    "tiny": "far too small for its bucket",
    "cropped": "much of it is cut off",
}
NOTES = {  # what is told without being held against the folder
    "enlarged": "smaller than its bucket, so enlarged",
    "long": "a caption of more than one chunk of 75 tokens",
    "twice": "both a .txt and a .caption: the .txt is read",
    "animated": "animated: the first picture is taken",
    "masked": "a mask that is not used; masks = files uses it",
}
TINY = 2.0  # times a picture has to be enlarged
MUCH = 0.25  # share of a picture that is cut off


@dataclass(frozen=True)
class Finding:
    kind: str  # a key of KINDS or NOTES
    files: tuple[str, ...]  # seen from the image folder
    text: str = ""  # what else is to be said

    @property
    def grave(self) -> bool:
        return self.kind in KINDS

    @property
    def title(self) -> str:
        return KINDS.get(self.kind) or NOTES[self.kind]


@dataclass(frozen=True)
class Bucket:
    """What one size gets."""

    resolution: int
    width: int
    height: int
    images: int
    showings: int  # in an epoch, repeats counted
    lost: float  # mean share of a picture that is cut off
    worst: float
    worst_file: str
    enlarged: int  # pictures that are smaller than it


@dataclass(frozen=True)
class Report:
    folder: str
    base: str
    images: int  # that can be trained on
    regular: int  # of them class pictures
    folders: tuple[tuple[str, int, int], ...]  # name, pictures, repeats
    findings: tuple[Finding, ...]
    buckets: tuple[Bucket, ...]
    tags: tuple[tuple[str, int], ...]  # the most frequent first
    longest: int  # tokens of the longest caption
    chunks: int  # of 75 tokens that a caption may have

    @property
    def grave(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.grave]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        found = [{"kind": f.kind, "grave": f.grave, "title": f.title, "files": list(f.files), "text": f.text} for f in self.findings]
        return asdict(self) | {"findings": found, "tags": dict(self.tags), "ok": not self.grave}


@dataclass
class _Seen:
    """What is gathered on the way through the folder."""

    root: Path
    found: list[Finding] = field(default_factory=list)
    examples: list[tuple[Example, tuple[int, int]]] = field(default_factory=list)  # readable, and (height, width)
    prints: list[tuple[Entry, similar.Print]] = field(default_factory=list)

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def tell(self, kind: str, paths: Path | Iterable[Path], text: str = "") -> None:
        names = tuple(self.name(path) for path in ([paths] if isinstance(paths, Path) else paths))
        self.found.append(Finding(kind, names, text.replace(f"{self.root}/", "")))


def inspect(
    settings: DataSettings, base: Grid, how: Frames, tokenizers: Sequence[Any], progress: Callable[[int, int], None] | None = None
) -> Report:
    """Decodes every picture and reads every caption. SdloraError where there is no folder, or no picture in it."""
    entries = folder.entries(settings)
    seen = _Seen(settings.images)
    for number, entry in enumerate(entries, 1):
        _look(entry, settings, seen)
        if progress:
            progress(number, len(entries))
    _pairs(seen)
    for pair in folder.shared_stems([entry.path for entry in entries]):
        seen.tell("shared", pair)
    longest = _texts(settings, seen, tokenizers)
    _orphans(settings, [entry.path for entry in entries], seen)
    table = buckets(seen, how)
    order = [*KINDS, *NOTES]
    return Report(
        str(settings.images),
        base.name,
        len(seen.examples),
        sum(example.regular for example, _ in seen.examples),
        _folders(seen),
        tuple(sorted(seen.found, key=lambda finding: order.index(finding.kind))),
        table,
        tuple(tag_frequencies(example for example, _ in seen.examples)),
        longest,
        settings.caption_chunks,
    )


def tag_frequencies(examples: Iterable[Example]) -> list[tuple[str, int]]:
    """How many pictures have each tag in a caption, the most frequent first."""
    counts = Counter(tag for example in examples for tag in dict.fromkeys(tag for text in example.captions for tag in captions.tags(text)))
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _look(entry: Entry, settings: DataSettings, seen: _Seen) -> None:
    try:
        image = pictures.read(entry.path, settings.background)
        whole = pictures.extent(entry.path)
    except SdloraError as error:
        seen.tell("unreadable", entry.path, str(error).partition("(")[2].partition("); replace")[0])
        return
    seen.prints.append((entry, similar.print_of(image)))
    with Image.open(entry.path) as opened:
        if getattr(opened, "is_animated", False):
            seen.tell("animated", entry.path)
    if settings.masks == "off" and folder.mask_of(entry.path):
        seen.tell("masked", entry.path)
    if len(captions.beside(entry.path)) > 1:
        seen.tell("twice", entry.path)
    try:
        seen.examples.append((folder.example(entry, settings), whole))
    except SdloraError:
        seen.tell(_wrong_caption(entry.path), entry.path)


def _wrong_caption(image: Path) -> str:
    files = captions.beside(image)
    if not files:
        return "missing"
    try:
        files[0].read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return "encoding"
    return "empty"


def _pairs(seen: _Seen) -> None:
    """Duplicates among pictures that are trained on alike: a class picture may well be one of the images."""
    for regular in (False, True):
        own = [(entry, mark) for entry, mark in seen.prints if entry.rule.regularisation == regular]
        by_bytes: dict[str, list[Path]] = {}
        for entry, mark in own:
            by_bytes.setdefault(folder.digest(entry.path), []).append(entry.path)
            if mark.flat and not regular:
                seen.tell("blank", entry.path)
        for paths in by_bytes.values():
            if len(paths) > 1:
                seen.tell("duplicate", paths)
        firsts = {paths[0] for paths in by_bytes.values()}
        single = [(entry, mark) for entry, mark in own if entry.path in firsts]
        for group in similar.groups(similar.near([mark for _, mark in single])):
            seen.tell("similar", [single[number][0].path for number in group])


def _texts(settings: DataSettings, seen: _Seen, tokenizers: Sequence[Any]) -> int:
    """Tokens of the longest caption; what is too long for one chunk, or for all; and what lacks the trigger."""
    longest, untold = 0, []
    for example, _ in seen.examples:
        counts = [(len(_ids(t, text)), len(chunks_of(t, text, "None"))) for t in tokenizers for text in example.captions]
        tokens, chunks = max(counts)
        longest = max(longest, tokens)
        if chunks > 1:
            seen.tell("cut" if chunks > settings.caption_chunks else "long", example.path, f"{tokens} tokens, {chunks} chunks")
        if not example.regular and not any(captions.contains(text, word) for text in example.captions for word in settings.triggers):
            untold.append(example.path)
    if settings.triggers and untold:
        seen.tell("trigger", untold, " or ".join(map(repr, settings.triggers)))
    return longest


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, truncation=False, add_special_tokens=False, verbose=False)["input_ids"]


def _orphans(settings: DataSettings, found: Sequence[Path], seen: _Seen) -> None:
    """Caption files beside which there is no picture, and names in a metadata file that no picture has."""
    stems = {path.with_suffix("") for path in found}
    for place in sorted({path.parent for path in found}):
        texts = sorted(path for path in place.iterdir() if path.suffix.lower() in captions.SUFFIXES and path.with_suffix("") not in stems)
        alone = [path for path in texts if path.stem.lower() not in ("license", "readme", "notice")]
        if alone:
            seen.tell("orphan", alone)
        table = metadata.find(place)
        if table and (missing := table.missing(folder.SUFFIXES)):
            seen.tell("orphan", [place / name for name in missing], f"named in {table.path.name}")


def buckets(seen: _Seen, how: Frames) -> tuple[Bucket, ...]:
    """Which pictures go where, the sizes in order; and which lose or gain too much there."""
    placed: dict[tuple[int, tuple[int, int]], list[tuple[Example, Crop]]] = {}
    for side in how.sides:
        for example, whole in seen.examples:
            try:
                crop = framed(whole, how, side)
            except SdloraError as error:
                seen.tell("tiny", example.path, str(error))
                continue
            placed.setdefault((side, crop.size), []).append((example, crop))
            _fit(example, crop, seen)
    return tuple(_bucket(side, size, members, seen) for (side, size), members in sorted(placed.items()))


def _fit(example: Example, crop: Crop, seen: _Seen) -> None:
    sizes = f"{crop.whole[1]} × {crop.whole[0]} for {crop.size[1]} × {crop.size[0]}"
    if crop.scale > 1:
        seen.tell("tiny" if crop.scale > TINY else "enlarged", example.path, f"{sizes}: {crop.scale:.2f} times as large")
    if crop.lost > MUCH:
        seen.tell("cropped", example.path, f"{sizes}: {crop.lost:.0%}")


def _bucket(side: int, size: tuple[int, int], members: list[tuple[Example, Crop]], seen: _Seen) -> Bucket:
    worst = max(members, key=lambda pair: pair[1].lost)
    return Bucket(
        side,
        size[1],
        size[0],
        len(members),
        sum(example.repeats for example, _ in members),
        sum(crop.lost for _, crop in members) / len(members),
        worst[1].lost,
        seen.name(worst[0].path),
        sum(crop.scale > 1 for _, crop in members),
    )


def _folders(seen: _Seen) -> tuple[tuple[str, int, int], ...]:
    counts = Counter((example.folder, example.repeats) for example, _ in seen.examples)
    return tuple((name, number, repeats) for (name, repeats), number in sorted(counts.items()))
