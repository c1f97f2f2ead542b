"""Captions: one line of text beside an image, in a .txt file of the same stem."""

from pathlib import Path

from sdlora.errors import SdloraError


def read(image: Path, default: str | None = None) -> str:
    """The caption of `image`: the words of its .txt file on one line, or `default` where there is no such file."""
    path = image.with_suffix(".txt")
    if not path.exists():
        if default is not None:
            return default
        raise SdloraError(
            f'{image} has no caption: write what it shows into {path.name} beside it, or set caption = "…" for all images without one'
        )
    try:
        caption = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise SdloraError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}") from error
    if not caption:
        raise SdloraError(f"{path} is empty; write what {image.name} shows into it")
    return caption


def contains(caption: str, words: str) -> bool:
    """Whether `words` occur in `caption` one after the other, whatever their case and the punctuation around them."""
    return f" {_plain(words)} " in f" {_plain(caption)} "


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() or c in "-_'" else " " for c in text.lower()).split())
