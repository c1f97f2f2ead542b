"""The processes that share a run: which one this is, its share, and waiting for the others. One alone is a crew as well."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sdlora import together

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Crew:
    device: str  # of this process
    rank: int = 0
    size: int = 1
    wait: Callable[[], None] = lambda: None  # until all have come as far

    @classmethod
    def mustered(cls, device: str = "auto") -> "Crew":
        """Those that `accelerate launch` or `torchrun` has started; each gets a GPU of its own, where "auto" finds some."""
        if together.launched() == 1:
            return cls(device)
        state = together.joined(cpu=device == "cpu")
        return cls(str(state.device) if device == "auto" else device, state.process_index, state.num_processes, state.wait_for_everyone)

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    def share(self, everything: Sequence[T]) -> list[T]:
        """A stretch of it, so that neighbours stay together; all shares together are everything, each once."""
        return list(everything[len(everything) * self.rank // self.size : len(everything) * (self.rank + 1) // self.size])
