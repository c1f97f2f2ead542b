"""States and adapters of a run on disk: written whole, the newest kept, a damaged newest one passed over for the one before."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from sdlora import files
from sdlora.errors import SdloraError
from sdlora.training.layout import Layout
from sdlora.training.run import Run, metadata, read_state


def newest(place: Layout, say: Callable[[str], object] = lambda text: None) -> Path | None:
    """The newest state that is whole; None if there is none at all, SdloraError if all are damaged. `say` hears of damaged ones."""
    found = place.states
    for path in reversed(found):
        if whole(path):
            return path
        say(f"{path} is damaged and passed over")
    if found:
        raise SdloraError(f"every state in {found[0].parent} is damaged; delete {place.folder} to train anew")
    return None


def check(run: Run, place: Layout) -> None:
    """SdloraError if the states in the folder are of a run with another base or other images."""
    state = newest(place)
    if state:
        run.check(read_state(state), state)


def whole(path: Path) -> bool:
    """Whether every part of the state still has its check sum."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return False


def step_of(path: Path | None) -> int:
    """The step in a state's name; 0 for no state."""
    return int(path.stem.rpartition("-")[2]) if path else 0


def state(run: Run, place: Layout) -> None:
    """Write the state and delete the oldest ones that are too many. One of a later step was passed over as damaged: it keeps no place."""
    run.save_state(place.state(run.step))
    prune([path for path in place.states if step_of(path) <= run.step], run.config.keep_states)


def file(run: Run, place: Layout) -> Path:
    """Where the adapter of the run's step lies."""
    return place.adapter if run.step == run.config.steps else place.checkpoint(run.step)


def adapter(run: Run, place: Layout) -> None:
    """Write the adapter and delete the oldest checkpoints that are too many."""
    write(run, file(run, place))
    prune(place.checkpoints, run.config.keep_checkpoints)


def write(run: Run, path: Path) -> None:
    files.save(run.adapter(metadata(run)), path, run.config.format)


def prune(paths: Sequence[Path], keep: int) -> None:
    """All but the last `keep` (0: none) are deleted."""
    for path in paths[:-keep] if keep else ():
        path.unlink(missing_ok=True)
