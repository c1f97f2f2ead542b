"""The processes of one launch: when one of them fails, all end, at once, and one says why.

A collective operation waits for a process that will never come: for ever, or until the launcher kills. So each process has a thread that
looks at the others, through the store that torchrun and `accelerate launch` keep for them: the first to fail writes it there, and on the
same machine one that was killed is seen by its number. The others are told by an exception, so that half-written files are cleared away,
and are ended if they do not hear it.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import Any

from sdlora.errors import SdloraError

LOOK = 0.5  # seconds between two looks at the others
GRACE = 5.0  # seconds in which a process can end by itself
PATIENCE = timedelta(hours=12)  # in which a process may draw, encode or validate while the others wait
SETTLED = 2.0  # seconds until a killed process is not there any more: its launcher has to take note
QUIET = 1  # exit code of those that have nothing to say


class Deserted(SystemExit):
    """Another process has failed, and says why; this one ends without a word."""

    def __init__(self) -> None:
        super().__init__(QUIET)


class Bereft(SdloraError):
    """Another process is gone and has said nothing."""

    def __init__(self) -> None:
        super().__init__(f"one of the {launched()} processes was killed, or crashed; the same command goes on from what is saved")


class Gone(BaseException):
    """What a process hears in the middle of its work when another is gone, before it is `Bereft`. No Exception: it comes wherever the work
    is, and what takes every Exception there for a picture or a file that is damaged would swallow it, or give another reason."""


def launched() -> int:
    """How many processes there are, by the launcher's word."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one."""
    return int(os.environ.get("RANK", "0"))


def joined(cpu: bool = False) -> Any:
    """accelerate's PartialState of this process, once all have come; on the CPU if asked or told to be, or if there is nothing else."""
    import torch
    from accelerate import PartialState

    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    alone = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    with _without("ACCELERATE_USE_DEEPSPEED"):  # nothing of its engine is used (sdlora/training/zero.py), nor is it imported
        state = PartialState(cpu=cpu or told or alone, timeout=PATIENCE)
    if state.num_processes != launched():
        raise SdloraError(f"{launched()} processes were launched, and accelerate sees {state.num_processes}; launch them with torchrun")
    return state


@contextmanager
def _without(variable: str) -> Iterator[None]:
    before = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[variable] = before


@contextmanager
def together() -> Iterator[None]:
    """Inside, this process and the others of its launch fail as one: of those that raise, the first does; the others get `Deserted`.

    `Bereft` if another was killed. Does nothing for a process alone, inside itself, and where the launcher keeps no store.
    """
    here = board()
    if here is None or here.watching:
        yield
        return
    watch = _Watch(here, threading.get_ident())
    try:
        try:
            yield
        finally:
            watch.end()
    except Deserted:
        raise
    except BaseException as error:
        _deafen()
        if isinstance(error, Gone):
            raise Bereft() from None
        well = isinstance(error, SystemExit) and not error.code
        other = None if well else _instead(here, error)
        if other:
            raise other from error
        raise
    finally:
        here.leave()


def _instead(here: "Board", error: BaseException) -> BaseException | None:
    """What to end with after `error`, if not with that."""
    torn = _torn(error)
    lost = (torn or isinstance(error, SystemExit)) and here.missing(SETTLED if torn else 0.0)
    if not here.claim():
        return Deserted()
    return Bereft() if lost else None


def _torn(error: BaseException) -> bool:
    """Whether it is one of communication: another's end, most often."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@dataclass(eq=False)
class Board:
    """What the processes tell each other: who has come, who has gone, who has failed first."""

    store: Any  # torch.distributed.Store
    rank: int
    size: int
    watching: bool = False

    def come(self) -> None:
        self.store.set(f"come {self.rank}", f"{os.getpid()} {_machine()}")

    def enter(self) -> None:
        """Be missed from now on; after a `leave` too, as of a script's second training."""
        self.watching = True
        with suppress(RuntimeError):
            self.store.delete_key(f"gone {self.rank}")

    def leave(self) -> None:
        """All is well, or said."""
        self.watching = False
        with suppress(RuntimeError):
            self.store.set(f"gone {self.rank}", "")

    def claim(self) -> bool:
        """Fail; whether nobody has before. Without the store nobody knows, and each may speak."""
        try:
            return int(self.store.compare_set("failed", "", str(self.rank))) == self.rank
        except RuntimeError:
            return True

    @property
    def failed(self) -> bool:
        return bool(self.store.check(["failed"]))

    def missing(self, within: float = 0.0) -> bool:
        """Whether one that came is neither there nor gone, now or in so many seconds; until one has failed. Of other machines only
        their own processes can tell."""
        end = time.monotonic() + within
        while not (found := self._missing()) and time.monotonic() < end and not self.failed:
            time.sleep(0.05)
        return found

    def _missing(self) -> bool:
        others = [other for other in range(self.size) if other != self.rank and self.store.check([f"come {other}"])]
        return any(self._dead(other) and not self.store.check([f"gone {other}"]) for other in others)

    def _dead(self, other: int) -> bool:
        number, _, machine = self.store.get(f"come {other}").decode().partition(" ")
        return machine == _machine() and not _alive(int(number))


@cache
def board() -> Board | None:
    """Where the processes of this launch meet."""
    if launched() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import PrefixStore, TCPStore

    host, port, start = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))
    try:
        store = PrefixStore(f"sdlora {start}", TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=30)))
        found = Board(store, rank(), launched())
        found.come()
    except (RuntimeError, ValueError):
        return None
    return found


class _Watch:
    """The thread that looks at the others while the work goes on in `worker`."""

    def __init__(self, here: Board, worker: int):
        self.here, self.worker, self.over = here, worker, threading.Event()
        here.enter()
        self.thread = threading.Thread(target=self._look, daemon=True, name="sdlora together")
        self.thread.start()

    def end(self) -> None:
        """The work is over; what the worker is still to hear it hears before this returns."""
        self.over.set()
        self.thread.join(GRACE)

    def _look(self) -> None:
        while not self.over.wait(LOOK):
            found = self._found()
            if found:
                return self._stop(found)

    def _found(self) -> type[BaseException] | None:
        """What the worker is to hear."""
        try:
            if self.here.failed or not self.here.missing():
                return Deserted if self.here.failed else None
            return Gone if self.here.claim() else Deserted
        except RuntimeError:  # the launcher is gone, and its store with it
            return Gone

    def _stop(self, why: type[BaseException]) -> None:
        if self.over.is_set():
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.worker), ctypes.py_object(why))
        if self.over.wait(GRACE):
            return
        if why is Gone:
            print(f"error: {Bereft()}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(QUIET)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM, by which a launcher ends its other processes, is an exception like Ctrl-C, and not an end in the middle of a file;
    from the first failure on it is not heard: what ends by itself has a word to say, in here. Does nothing for a process alone."""
    main = threading.current_thread() is threading.main_thread()
    if not main or launched() == 1 or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    _deafen()
    raise SystemExit(128 + number)


def _deafen() -> None:
    """Inside `terminable`, hear no SIGTERM any more."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _leave:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _machine() -> str:
    """Where process numbers mean the same."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _alive(number: int) -> bool:
    if os.name != "posix":  # elsewhere the question ends the process
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
