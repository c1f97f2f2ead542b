"""Text files: always UTF-8, read with or without a byte order mark, written whole or not at all."""

from pathlib import Path

from sdlora.atomic import replacing
from sdlora.errors import SdloraError


def read(path: Path, what: str) -> str:
    """SdloraError where `path` cannot be read or is no UTF-8; it says that the file should be `what`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}; it should be {what}") from error
    except UnicodeDecodeError as error:
        raise SdloraError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
