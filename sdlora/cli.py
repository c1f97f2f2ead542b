"""The command line: `sdlora COMMAND`. Commands are the modules of sdlora.commands; this file gathers them and words their failures."""

import gc
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from sdlora import __version__
from sdlora.commands import adapter, base, benchmark, cache, dataset, demo, generate, grid, train
from sdlora.errors import SdloraError
from sdlora.together import terminable, together

COMMANDS = (train, generate, grid, dataset, benchmark, demo, adapter, base, cache)  # in the order of `sdlora --help`
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes: the first is also what a wrong option gives, the second is the shell's for Ctrl-C


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdlora {__version__}")
        raise typer.Exit()


def build() -> typer.Typer:
    """The application with all commands."""
    app = typer.Typer(name="sdlora", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.callback()
    def sdlora(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and leave."),
    ) -> None:
        """Train, stack, fuse and compare LoRA adapters for Stable Diffusion."""

    for module in COMMANDS:
        module.register(app)
    return app


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """The exit code of one call; `arguments` are sys.argv's by default. A user's mistake is one message, never a traceback; of
    several processes one says it."""
    with terminable():
        return _run(app, arguments)


def _run(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    try:
        with together():
            app(args=None if arguments is None else list(arguments), prog_name="sdlora")
    except SdloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except SystemExit as leave:  # typer's way to end, with the code that it or the command chose
        code = leave.code if isinstance(leave.code, int) else 1
        return _interrupted(_stop(leave)) if code == INTERRUPTED else code
    return 0


def _stop(leave: SystemExit) -> BaseException | None:
    """The KeyboardInterrupt that typer has made this exit of, if any."""
    return getattr(leave.__context__, "__cause__", None)


def _interrupted(stop: BaseException | None) -> int:
    """Say what the interrupted work had to say, training for example where it goes on, in one line."""
    print(str(stop or "") or "interrupted", file=sys.stderr)
    return INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    return run(build(), arguments)


def program(arguments: Sequence[str] | None = None, app: typer.Typer | None = None) -> NoReturn:
    """`run` as the whole process. Once all is said, Ctrl-C has its plain meaning: in the interpreter's own exit handlers Python would
    print a traceback about it. And nothing is taken apart that ends with the process anyway: going through all objects of PyTorch and
    diffusers for dead ones takes a second."""
    code = run(app or build(), arguments)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    program()
