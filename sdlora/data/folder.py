"""An image folder: pictures, each with its caption in a .txt file of the same stem."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora import captions
from sdlora.errors import SdloraError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Example:
    path: Path
    caption: str

    @property
    def digest(self) -> str:
        """sha256 of the file's bytes."""
        status = self.path.stat()
        return _digest(self.path, status.st_mtime_ns, status.st_size)


def scan(folder: str | Path, caption: str | None = None) -> list[Example]:
    """The images of `folder` and their captions, in the order of their names; subfolders and hidden files are left out.

    `caption` serves images without a .txt file. SdloraError for a missing or empty folder and for a missing caption.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SdloraError(
            f"the image folder {folder} {'is a file' if folder.exists() else 'does not exist'}; set images to a folder of pictures"
        )
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not pictures:
        raise SdloraError(f"no images in {folder}{_hint(folder)}; put {', '.join(s[1:] for s in SUFFIXES)} files there")
    _refuse_shared_captions(pictures)
    return [Example(path, captions.read(path, caption)) for path in pictures]


def fingerprint(examples: Sequence[Example]) -> str:
    """sha256 over the contents of images and captions in their order; names and places do not count."""
    text = "\n".join(f"{example.digest} {example.caption}" for example in examples)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_shared_captions(pictures: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in pictures:
        if path.stem in seen:
            raise SdloraError(f"{seen[path.stem].name} and {path.name} in {path.parent} share a stem, and so a caption file; rename one")
        seen[path.stem] = path


def _hint(folder: Path) -> str:
    below = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(f.suffix.lower() in SUFFIXES for f in path.iterdir()))
    return f", but in its subfolder {below[0]}; images in subfolders are not read" if below else ""


@lru_cache(maxsize=1 << 16)
def _digest(path: Path, modified: int, size: int) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}") from error
