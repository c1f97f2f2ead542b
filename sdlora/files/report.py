"""What was found in an adapter file: layers that fit and that do not, ranks, α, dialect, trainer and family."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sdlora.adapter import Adapter
from sdlora.matching import adapter_family
from sdlora.origin import trainer_of

EMBEDDINGS = "bundle_emb."  # OneTrainer's textual inversions, bundled with the LoRA that was trained with them


@dataclass(frozen=True)
class Report:
    dialect: str  # of the keys
    trainer: str | None  # the program that wrote the file
    family: str | None  # that the adapter is for: a key of FAMILIES, or "transformer"
    components: Mapping[str, int]  # layers by component
    ranks: Mapping[int, int]  # layers by rank
    alphas: Mapping[float, int]  # layers by α
    surplus: tuple[str, ...]  # keys of no layer
    matched: tuple[str, ...] = ()  # layers that the model has, in the model's shape; without a model, none
    unmatched: tuple[str, ...] = ()  # layers that the model has not

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Trigger words whose embeddings are bundled in the file; they are reported and not loaded."""
        return tuple(dict.fromkeys(key.split(".")[1] for key in self.surplus if key.startswith(EMBEDDINGS)))

    @property
    def unknown(self) -> tuple[str, ...]:
        """Keys of which nothing is known."""
        return unknown(self.surplus)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"embeddings": self.embeddings}

    def held_against(self, layers: Mapping[str, Any]) -> "Report":
        """With the layers counted as matched and unmatched that `layers` (name -> layer) has and has not; to be called on a report
        that has all of them in `unmatched`."""
        found = tuple(name for name in self.unmatched if name in layers)
        return replace(self, matched=found, unmatched=tuple(name for name in self.unmatched if name not in layers))


def unknown(surplus: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the keys of no layer of which nothing is known."""
    return tuple(key for key in surplus if not key.startswith(EMBEDDINGS))


def report(adapter: Adapter, dialect: str, surplus: tuple[str, ...]) -> Report:
    """Of an adapter that was held against no model: all its layers are unmatched."""
    layers = adapter.layers
    return Report(
        dialect,
        trainer_of(adapter.metadata, surplus),
        adapter_family(adapter),
        dict(Counter(name.partition(".")[0] for name in layers)),
        dict(sorted(Counter(update.rank for update in layers.values()).items())),
        dict(sorted(Counter(update.alpha for update in layers.values()).items())),
        surplus,
        unmatched=tuple(layers),
    )
