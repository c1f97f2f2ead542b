"""Commands that draw: the settings of sdlora/drawing/settings.py as options, and the bar."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from sdlora.drawing.settings import NONE, OPTIONAL, OPTIONS, Drawing
from sdlora.errors import SdloraError

NUMBERS = {int: "WHOLE", float: "DECIMAL"}
ASSIGNED = re.compile(r"\s*([A-Za-z][\w-]*)=(.*)", re.DOTALL)
TEXTS = (int | str,)  # settings that a file may give as another type, and the command line as a word


def options(leave: Sequence[str] = ()) -> list[inspect.Parameter]:
    """One for every setting, but those of `leave`. Not given is None, so that one knows what was said."""
    hints = get_type_hints(Drawing)
    return [_option(field, hints[field.name]) for field in OPTIONS if field.name not in leave]


def with_options(*leave: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command `f(own, options, **given)`: its own parameters first, then all settings but `leave`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]

        def call(**words: Any) -> None:
            command(**{p.name: words.pop(p.name) for p in own}, **said(words))

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *options(leave))]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        call.__name__, call.__doc__ = command.__name__, command.__doc__
        return call

    return decorate


def said(words: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, as Drawing has them."""
    found = {name: value for name, value in words.items() if value is not None and value != []}
    return {name: NONE if name in OPTIONAL and str(value) == NONE else _tupled(value) for name, value in found.items()}


def check_prompts(prompts: Sequence[str]) -> None:
    """SdloraError for a prompt such as steps=6: a setting, as `sdlora train` has it, that would be drawn as a picture's text."""
    known = {field.name: f"--{field.name.replace('_', '-')}" for field in OPTIONS} | {"from": "--from", "settings": "--settings"}
    for text in prompts:
        if match := ASSIGNED.fullmatch(text):
            name = match[1].lower().replace("-", "_")
            near = get_close_matches(name, known, n=1, cutoff=0.8) if not re.search(r"\s", text.strip()) else []
            if meant := known.get(name) or next((known[other] for other in near), None):
                raise SdloraError(f"{text!r} stands among the prompts; settings are options here: write {meant} {match[2] or 'VALUE'}")


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _or_none(kind: type, name: str) -> Callable[[str], Any]:
    """What reads an option's word: a number, or the word none."""

    def read(text: str) -> Any:
        try:
            return text if text == NONE else kind(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no {name.lower()} number, nor none") from None

    read.__name__ = name  # what the help calls it
    return read


def _option(field: Any, hint: Any) -> inspect.Parameter:
    known = field.metadata
    flags = [known["flag"]] if known["flag"] else []
    shown: dict[str, Any] = {} if field.default in ((), None, "", False) else {"show_default": str(field.default)}
    plain = _plain(hint)
    if field.name in OPTIONAL and plain in NUMBERS:
        shown["parser"] = _or_none(plain, NUMBERS[plain])
    option = typer.Option(*flags, help=known["help"], metavar=known["metavar"], **shown)  # a text stands in the help alone
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[plain | None, option])


def _plain(hint: Any) -> Any:
    """The type of an option: list[Path] for tuple[Path, …], str for int | str, and what may be None without the None."""
    if hint in TEXTS:
        return str
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]]  # type: ignore[misc]
    return next((kind for kind in get_args(hint) if kind is not NoneType), hint)


@contextmanager
def bar(total: int) -> Iterator[Callable[[int], None]]:
    """Over all steps of all pictures; yields what moves it on. No bar where everything is there already."""
    if not total:
        yield lambda images: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} steps/s" if task.speed else "… steps/s")

    done = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*done, Speed(), TimeRemainingColumn(), TextColumn("left"), console=Console(stderr=True)) as shown:
        task = shown.add_task("drawing", total=total)
        yield lambda images: shown.advance(task, images)


def tell(text: str) -> None:
    typer.echo(text, err=True)


def report(paths: Sequence[Path], seconds: float) -> None:
    """Where the pictures are, and how long they took."""
    for path in paths if len(paths) <= 8 else (paths[0], paths[-1]):
        typer.echo(path)
    if paths:
        typer.echo(f"{len(paths)} picture{'s' * (len(paths) > 1)} in {seconds:.1f} s, {seconds / len(paths):.2f} s each")
