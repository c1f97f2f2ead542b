"""The files of a benchmark of either kind: JSON with every sample, which can be read again, and a report beside it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sdlora import config, texts
from sdlora.errors import SdloraError

NAME = "benchmark.json"
WANTED = "the benchmark.json of a run"

Progress = Callable[[int, int, str], None]  # done, of how many, what now
Made = TypeVar("Made")
R = TypeVar("R")  # a Result
A = TypeVar("A")  # its Analysis


@dataclass(frozen=True)
class Outcome(Generic[R, A]):
    """A finished or interrupted benchmark and its files; without two whole blocks there is no plot."""

    result: R
    analysis: A | None
    json: Path
    markdown: Path
    html: Path
    plot: Path | None


def reported(
    found: R, analysis: A | None, path: Path, plot: Callable[[R, A, Path], None], words: Callable[[Path | None], tuple[str, str]]
) -> Outcome[R, A]:
    """Beside the JSON at `path`: a PNG if there is anything to plot, and Markdown and HTML, which `words` makes, given the PNG."""
    picture = None if analysis is None else path.with_suffix(".png")
    if analysis is not None and picture is not None:
        plot(found, analysis, picture)
    markdown, html = path.with_suffix(".md"), path.with_suffix(".html")
    for file, text in zip((markdown, html), words(picture), strict=True):
        texts.write(file, text)
    return Outcome(found, analysis, path, markdown, html, picture)


def write(path: Path, content: Mapping[str, Any]) -> None:
    texts.write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(path: Path, format: str, made: Callable[[dict[str, Any]], Made]) -> Made:
    """What `made` makes of the content; SdloraError for another format, and for what is no such file."""
    text = texts.read(path, WANTED)
    try:
        content = json.loads(text)
        if content["format"] != format:
            raise SdloraError(f"{path} is of format {content['format']!r}; this version reads {format!r}")
        return made(content)
    except (ValueError, KeyError, TypeError) as error:
        raise SdloraError(f"{path} is not the JSON of a benchmark: {config.brief(error)}; it should be {WANTED}") from error


def kind(path: Path) -> str:
    """The format that a file says it has; SdloraError for one that is no benchmark's."""
    text = texts.read(path, WANTED)
    try:
        return str(json.loads(text)["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise SdloraError(f"{path} is not the JSON of a benchmark: {config.brief(error)}; it should be {WANTED}") from error
