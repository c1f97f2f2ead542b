"""Trackers that are told the metrics as well: accelerate's, by their names there."""

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from sdlora.errors import SdloraError, nearest

PACKAGES = {  # accelerate's name -> (module, what pip installs)
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "aim": ("aim", "aim"),
    "mlflow": ("mlflow", "mlflow"),
    "clearml": ("clearml", "clearml"),
    "dvclive": ("dvclive", "dvclive"),
    "swanlab": ("swanlab", "swanlab"),
    "trackio": ("trackio", "trackio"),
}


def check(names: tuple[str, ...]) -> None:
    """SdloraError for a tracker that is unknown or not installed."""
    for name in names:
        if name not in PACKAGES:
            raise SdloraError(f"trackers has {name!r}, which is unknown{nearest(name, PACKAGES)}")
        module, package = PACKAGES[name]
        if find_spec(module) is None:
            raise SdloraError(f"trackers has {name}, which is not installed: pip install {package}")


class Trackers:
    """All of a run's, none by default."""

    def __init__(self, names: tuple[str, ...] = (), folder: Path = Path(), run: str = "", settings: dict[str, Any] | None = None):
        self.names, self.folder, self.run, self.settings = names, folder, run, settings or {}
        self.open: list[Any] = []

    def start(self, step: int) -> None:
        """From `step` on; what was told of later ones, before an interruption, is taken back where the tracker can."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in self.names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            options: dict[str, Any] = {"purge_step": step + 1} if name == "tensorboard" else {}
            if getattr(kind, "requires_logging_directory", False):
                self.folder.mkdir(parents=True, exist_ok=True)
                options["logging_dir"] = str(self.folder)
            tracker = kind(self.run, **options)
            if hasattr(tracker, "start"):
                tracker.start()
            self.open.append(tracker)
            if name != "tensorboard":  # its hyperparameters are a second run beside the first, each time anew
                tracker.store_init_configuration(self.settings)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for tracker in self.open:
            tracker.log(numbers, step=step)

    def picture(self, path: Path, step: int) -> None:
        """The picture at `path`, for those that show pictures; nothing if it is not there."""
        showing = [tracker for tracker in self.open if tracker.name in ("tensorboard", "wandb")]
        if not showing or not path.exists():
            return
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[None]
        for tracker in showing:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": pixels}, step=step, **options)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self.open:
            self.open.pop().finish()
