"""The run folder: where everything lies, and whether a run found there is the one that is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import atomic, config, texts
from sdlora.errors import SdloraError
from sdlora.training.config import TrainConfig

# What may differ between the command that began a run and the one that goes on with it: nothing of this changes the adapter.
# The contents of PLACES, with captions, repeats, weights and masks, and of an adapter to begin with are compared by their hashes instead.
PLACES = ("images", "folders", "regularisation", "metadata", "strict", "init")
HERE = ("output", "save_every", "keep_states", "keep_checkpoints", "trackers", "cache", "cache_limit", "samples", "device")
FREE: dict[str, Any] = dict.fromkeys((*PLACES, *HERE, "gradient_checkpointing", "explosion"), True) | {
    "validation": {"images", "every", "timesteps"}
}


@dataclass(frozen=True)
class Layout:
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        return self.folder / "validation.jsonl"

    @property
    def manifest(self) -> Path:
        return self.folder / "dataset.json"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    @property
    def trackers(self) -> Path:
        return self.folder / "trackers"

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter.safetensors"

    @property
    def prior(self) -> Path:
        return self.folder / "prior"

    def state(self, step: int) -> Path:
        return self.folder / "states" / f"step-{step:06d}.pt"

    @property
    def states(self) -> list[Path]:
        """Those that are there, the oldest first."""
        return sorted((self.folder / "states").glob("step-*.pt"))

    @property
    def checkpoints(self) -> list[Path]:
        """The adapters saved on the way, the oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.safetensors"

    def sample(self, step: int, number: int = 1) -> Path:
        """Where a `draw` callback puts its picture of prompt `number` (from 1) at step `step`."""
        return self.folder / "samples" / f"step-{step:06d}-{number}.png"

    @property
    def grid(self) -> Path:
        return self.folder / "samples" / "grid.png"


def agree(layout: Layout, wanted: TrainConfig) -> None:
    """SdloraError if the folder holds a run with other settings. More `steps` are fine under the constant schedule: there a run
    that goes on is the same as one that was asked for all steps at first, while a cosine would have fallen more slowly."""
    if not layout.config.exists():
        return
    found = config.load(TrainConfig, layout.config)
    other = differences(found, wanted)
    if set(other) == {"steps"} and wanted.schedule == "constant" and wanted.steps > found.steps:
        return
    if other:
        listed = ", ".join(f"{key} {_word(old)} there and {_word(new)} now" for key, (old, new) in other.items())
        hint = " (only schedule=constant lets a run go on for more steps)" if "steps" in other else ""
        raise SdloraError(
            f"{layout.folder} holds a run with other settings: {listed}{hint}; choose another output, or delete the folder to train anew"
        )


def differences(one: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value there, value here), for all settings that have a part in the adapter.

    What `other` leaves to the base (resolution) or to the device (precision) is no difference.
    """
    left, right = (_flat(settings.model_dump(mode="json", exclude=FREE)) for settings in (one, other))
    open_ = {key for key, unset in (("resolution", None), ("precision", "auto")) if right[key] == unset}
    return {key: (left.get(key), right.get(key)) for key in {**left, **right} if key not in open_ and left.get(key) != right.get(key)}


def begin(layout: Layout) -> None:
    """Make the folder, and clear away what a killed process had half written there."""
    atomic.writable_folder(layout.folder)
    for half in layout.folder.rglob(".*.tmp.*"):
        half.unlink(missing_ok=True)


def write(layout: Layout, settings: TrainConfig) -> None:
    """The settings into the folder: from then on it holds a run of these."""
    texts.write(layout.config, config.dumps(settings))


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in data.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def _word(value: Any) -> str:
    return "unset" if value is None else str(value)
