"""Of several processes that fail, one says why and the others end without a word."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from torch.distributed import HashStore

from sdlora import cli, together
from sdlora.errors import SdloraError
from sdlora.together import Bereft, Board, Deserted

HANGS = 120.0  # seconds that nothing here takes, however busy the machine is


@pytest.fixture
def boards(monkeypatch):
    """Two processes' boards with one store between them, and a function that makes one of them this process's own."""
    store = HashStore()
    found = [Board(store, rank, 2) for rank in range(2)]

    def be(rank: int) -> Board:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(together, "board", lambda: found[rank])
        return found[rank]

    return found, be


def failing(error: BaseException) -> BaseException | None:
    try:
        with together.together():
            raise error
    except BaseException as found:
        return found


def test_the_first_to_fail_speaks_and_the_others_do_not(boards):
    _, be = boards
    be(1)
    error = SdloraError("found by the second")
    assert failing(error) is error
    be(0)
    assert isinstance(failing(SdloraError("found as well")), Deserted)
    assert isinstance(failing(KeyboardInterrupt()), Deserted) and Deserted().code == 1


def test_a_process_that_ends_well_is_no_loss_and_its_exit_is_its_own(boards):
    found, be = boards
    be(0).come()
    with together.together():
        pass
    leave = SystemExit(0)
    assert failing(leave) is leave
    assert not found[1].missing() and not found[1].failed


def test_a_process_that_is_killed_is_missed_and_another_says_so_once(boards):
    found, be = boards
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    found[1].store.set("come 1", f"{gone.pid} {together._machine()}")
    assert be(0).missing()
    said = failing(SystemExit(143))  # as the launcher ends the others
    assert isinstance(said, Bereft) and "one of the 2 processes was killed" in str(said)
    found[1].store.set("come 1", f"{gone.pid} another machine")
    assert not found[0].missing(), "its numbers mean nothing here"


def test_a_second_piece_of_work_is_missed_like_the_first(boards, monkeypatch):
    found, be = boards
    be(0).come()
    monkeypatch.setattr(together, "_alive", lambda number: False)
    for _ in range(2):
        with together.together():
            assert found[1].missing()
        assert not found[1].missing()


TORN = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer"


def test_a_connection_that_breaks_is_the_end_of_another_if_one_is_missing(boards, monkeypatch):
    found, be = boards
    monkeypatch.setattr(together, "SETTLED", 0.1)
    be(0)
    found[1].come()
    error = RuntimeError(TORN)
    assert failing(error) is error, "nobody is missing: it says itself what is wrong"


def test_a_connection_that_breaks_because_another_was_killed_says_that(boards, monkeypatch):
    found, be = boards
    be(0)
    found[1].come()
    monkeypatch.setattr(together, "SETTLED", HANGS)
    alive = iter([True, True])
    monkeypatch.setattr(together, "_alive", lambda number: next(alive, False))  # until its launcher has taken note
    assert isinstance(failing(RuntimeError(TORN)), Bereft)


def test_an_error_of_ones_own_stays_as_it_is(boards):
    _, be = boards
    be(0)
    own = RuntimeError("out of memory")
    assert failing(own) is own


@pytest.mark.parametrize("how", ["failed", "killed"])
def test_who_works_on_hears_of_it_in_the_middle(boards, monkeypatch, how):
    found, be = boards
    monkeypatch.setattr(together, "LOOK", 0.01)
    monkeypatch.setattr(together, "GRACE", HANGS)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("it had heard"))
    be(0)
    heard, cleared, working = [], [], threading.Event()

    def work() -> None:
        try:
            with together.together():
                try:
                    working.set()
                    while True:
                        try:
                            time.sleep(0.001)
                        except Exception as error:  # as a library, or a reader of damaged files
                            raise SdloraError("another reason") from error
                finally:
                    cleared.append(True)
        except BaseException as error:
            heard.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert working.wait(HANGS) and not heard
    if how == "failed":
        assert found[1].claim()
    else:
        monkeypatch.setattr(together, "_alive", lambda number: False)
        found[1].come()
    thread.join(HANGS)
    assert heard == [Deserted if how == "failed" else Bereft] and cleared


def test_the_command_line_says_it_from_one_process_only(boards, capsys):
    _, be = boards
    codes = []
    for rank in (1, 0):
        be(rank)
        codes.append(cli.run(cli.build(), ["train", "nowhere"]))
    assert codes == [2, 1]
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "nowhere does not exist" in said


def test_a_launcher_that_ends_the_others_does_not_cut_the_last_word(boards, monkeypatch, capsys):
    found, be = boards
    plain = found[0].leave

    def leave() -> None:
        plain()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(found[0], "leave", leave)
    be(0)
    assert cli.run(cli.build(), ["train", "nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_launcher_that_ends_the_others_is_heard_like_ctrl_c(boards):
    _, be = boards
    be(0)
    cleared = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(HANGS)
        finally:
            cleared.append(True)

    with together.terminable(), pytest.raises(SystemExit) as left, together.together():
        work()
    assert left.value.code == 143 and cleared


def test_a_process_alone_is_left_as_it_is(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    together.board.cache_clear()
    threads = set(threading.enumerate())
    error = SdloraError("mine")
    assert together.board() is None and failing(error) is error and set(threading.enumerate()) <= threads
