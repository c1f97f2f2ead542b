"""One axis of a grid: a setting and its values, and what a value makes of the settings of a cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from sdlora.drawing import reading
from sdlora.drawing.settings import MODEL, NONE, PICTURE, Drawing, scope
from sdlora.errors import SdloraError, nearest
from sdlora.generation import parse_adapter, parse_seeds
from sdlora.strength import Strength, parse, strength

MOST = 1000  # values of one axis
SHOWN = {"strength": "η", "guidance": "guidance", "clip_skip": "clip skip"}  # before the values on a label; else the setting's name
BARE = {"prompt", "replace", "checkpoint", "sampler", "schedule", "base"}  # values that speak for themselves


@dataclass(frozen=True)
class Axis:
    """A setting of Drawing by its name, or one of SPECIAL:

    replace     the first value is looked for in the prompts and becomes each of the values
    strength    η of an adapter, in the grammar of sdlora/strength.py
    checkpoint  the adapter's file: files, or a training run's folder, which stands for all of its checkpoints
    """

    name: str
    values: tuple[Any, ...]
    adapter: str | None = None  # for strength and checkpoint: which, by its file's name, where there are several
    labels: tuple[str, ...] = ()

    @classmethod
    def read(cls, data: Any, where: str, folder: Path) -> "Axis":
        """From a TOML table: axis, values (a list, or 0:1.2:0.2, or 1-4 for seeds), and labels and adapter at will."""
        if not isinstance(data, Mapping) or "axis" not in data or "values" not in data:
            raise SdloraError(f'{where} is no axis; write axis = "steps" and values = [10, 20] below it')
        for key in data.keys() - {"axis", "values", "labels", "adapter"}:
            raise SdloraError(f"unknown setting {key} {where}{nearest(key, ('axis', 'values', 'labels', 'adapter'))}")
        name = str(data["axis"])
        found = values(name, data["values"])
        if name == "checkpoint":
            found = [str(folder / Path(str(value)).expanduser()) for value in found]
        return cls(name, tuple(found), data.get("adapter"), tuple(map(str, data.get("labels", ()))))

    def __post_init__(self) -> None:
        if self.name not in names():
            raise SdloraError(f"unknown axis {self.name!r}{nearest(self.name, names())}")
        if self.name == "checkpoint":
            object.__setattr__(self, "values", tuple(file for value in self.values for file in checkpoints(Path(value))))
        if not 0 < len(self.values) <= MOST:
            raise SdloraError(f"the axis {self.name} has {len(self.values)} values; it needs from 1 to {MOST}")
        if self.labels and len(self.labels) != len(self.values):
            raise SdloraError(f"the axis {self.name} has {len(self.values)} values and {len(self.labels)} labels; give each one or none")

    def label(self, i: int) -> str:
        if self.labels:
            return self.labels[i]
        value = self.values[i]
        text = Path(value).stem if self.name in ("checkpoint", "base", "vae") else f"{value:g}" if isinstance(value, float) else str(value)
        return text if self.name in BARE else f"{SHOWN.get(self.name, self.name)} {text}"

    def applied(self, drawing: Drawing, i: int) -> Drawing:
        """`drawing` with value i."""
        if special := SPECIAL.get(self.name):
            return special(self, drawing, self.values[i])
        return reading.merged(vars(drawing), reading.checked({self.name: self.values[i]}, "on an axis", Path.cwd()))


def names() -> tuple[str, ...]:
    """All axes."""
    return (*SPECIAL, *scope(PICTURE, MODEL))


def values(name: str, given: Any) -> list[Any]:
    """A list as it is; "0:1.2:0.2" from, to (inclusive) and step; "1-4" for seeds; else a text's parts between commas."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return list(given)
    if not isinstance(given, str):
        raise SdloraError(f"the values of the axis {name} are {given!r}; give a list, or a text such as 0:1.2:0.2")
    if name == "seed":
        return [str(seed) for seed in parse_seeds(given)]
    return spread(given) if given.count(":") == 2 else [_number(part.strip()) for part in given.split(",")]


def spread(text: str) -> list[float]:
    """ "0:1.2:0.2" -> 0, 0.2, …, 1.2: without the errors that adding 0.2 over and over gathers."""
    try:
        first, last, step = (Decimal(part.strip()) for part in text.split(":"))
        count = int((last - first) / step) + 1
    except (InvalidOperation, ZeroDivisionError, ValueError, OverflowError) as error:
        raise SdloraError(f"{text!r} is no range; write from:to:step, such as 0:1.2:0.2") from error
    if not 0 < count <= MOST:
        raise SdloraError(f"the range {text!r} has {max(count, 0):,} values; it needs from 1 to {MOST}, and a step towards its end")
    return [int(value) if value == int(value) and "." not in text else float(value) for value in (first + i * step for i in range(count))]


def checkpoints(path: Path) -> list[str]:
    """The adapters of a training run in the order of their steps, or the file itself."""
    if path.is_dir():
        found = [*sorted(path.glob("step-*.safetensors")), *path.glob("adapter.safetensors")]
        if not found:
            raise SdloraError(f"{path} has no checkpoints (step-….safetensors, adapter.safetensors); give a training run's folder")
        return [str(file) for file in found]
    if not path.is_file():
        raise SdloraError(f"there is no checkpoint {path}; give adapter files, or a training run's folder")
    return [str(path)]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _replaced(axis: Axis, drawing: Drawing, value: Any) -> Drawing:
    sought = str(axis.values[0])
    if not any(sought in text for text in (*drawing.prompt, drawing.negative)):
        raise SdloraError(f"the axis replace looks for {sought!r}, which is in no prompt; its first value is what is replaced")
    return replace(
        drawing,
        prompt=tuple(text.replace(sought, str(value)) for text in drawing.prompt),
        negative=drawing.negative.replace(sought, str(value)),
    )


def _strengthened(axis: Axis, drawing: Drawing, value: Any) -> Drawing:
    eta = parse(value) if isinstance(value, str) else strength(value)
    return _with_adapter(axis, drawing, lambda path, _: (path, eta))


def _at_checkpoint(axis: Axis, drawing: Drawing, value: Any) -> Drawing:
    return _with_adapter(axis, drawing, lambda _, eta: (Path(value), eta))


def _with_adapter(axis: Axis, drawing: Drawing, change: Callable[[Path, Strength], tuple[Path, Strength]]) -> Drawing:
    """The one adapter that the axis is about, changed."""
    given = [parse_adapter(text) for text in drawing.adapter if text != NONE]
    if not given and axis.name == "checkpoint":
        given = [(Path(axis.values[0]), strength(1))]
    stems = [path.stem for path, _ in given]
    wanted = axis.adapter or (stems[0] if len(stems) == 1 else None)
    if wanted is None:
        several = f"the adapters {', '.join(stems)}; say which is meant" if stems else "no adapter; give one"
        raise SdloraError(f'the axis {axis.name} and {several}, adapter = "NAME" for the axis or --adapter FILE')
    if wanted not in stems:
        raise SdloraError(f"the axis {axis.name} is about the adapter {wanted!r}, which is not given{nearest(wanted, stems)}")
    changed = [change(path, eta) if stem == wanted else (path, eta) for stem, (path, eta) in zip(stems, given, strict=True)]
    return replace(drawing, adapter=tuple(f"{path}={eta}" for path, eta in changed))


SPECIAL: dict[str, Callable[[Axis, Drawing, Any], Drawing]] = {
    "replace": _replaced,
    "strength": _strengthened,
    "checkpoint": _at_checkpoint,
}
