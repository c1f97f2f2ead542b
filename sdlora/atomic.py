"""Files appear whole or not at all: written beside their place under a temporary name, then moved there."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdlora.errors import SdloraError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def writable_folder(path: str | Path) -> Path:
    """`path` as a folder that exists and takes files; SdloraError otherwise."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SdloraError(f"cannot write into {folder}: {error.strerror}; choose another output folder") from error
    return folder


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it on success and removed on failure. SdloraError for a disk that takes no more.

    The temporary name ends like `path` does, for writers that look at the suffix.
    """
    target = Path(path)
    if target.is_dir():
        raise SdloraError(f"cannot write {target}: it is a folder; give a file name")
    folder = writable_folder(target.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=f".tmp{target.suffix}", dir=folder)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        os.replace(temporary, target)
    except OSError as error:
        if error.errno not in FULL:
            raise
        found = f"cannot write {target}: {error.strerror}"
        raise SdloraError(f"{found}; nothing of it is left behind, and earlier files are whole; make room, or write elsewhere") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
