"""Notices a loss that explodes: its running median against the lowest that it has had."""

from statistics import median

WINDOW = 50  # losses in a running median: single ones differ by a factor of a hundred with their timesteps


class Guard:
    """Remembers the last losses. All that it knows is in `state`, so that a resumed run judges as one that was never stopped."""

    def __init__(self, factor: float):
        self.factor = factor  # 0: never alarmed
        self.losses: list[float] = []
        self.lowest = float("inf")

    def alarmed(self, loss: float) -> str | None:
        """Takes one more loss; what is wrong, if the median of the last ones is `factor` times the lowest median so far."""
        self.losses = [*self.losses[-(WINDOW - 1) :], loss]
        if not self.factor or len(self.losses) < WINDOW:
            return None
        now = median(self.losses)
        self.lowest = min(self.lowest, now)
        if now <= self.factor * self.lowest:
            return None
        return f"the loss explodes: its median over {WINDOW} steps is {now:.3g} and was {self.lowest:.3g}"

    @property
    def state(self) -> dict[str, object]:
        return {"losses": list(self.losses), "lowest": self.lowest}

    def restore(self, state: dict) -> None:
        self.losses, self.lowest = list(state["losses"]), float(state["lowest"])
