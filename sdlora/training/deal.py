"""Which pictures make batch number k: a pure function of (seed, k), for pictures of several sizes.

An endless sequence in which every epoch has each card (a picture as often as it is repeated) once, in a new order, is dealt onto one
pile per size; a pile that holds a whole batch gives it. So every batch is full and of one size, nothing is ever left out, and at any
time a picture has come exactly as often as the epochs say, but for the less than one batch that waits on each pile. With one size
this is the sequence itself, cut into batches.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sdlora.training import draws


@dataclass(frozen=True)
class Card:
    """One showing of a picture."""

    row: int
    showing: int  # how often the picture was shown before


@dataclass(frozen=True, eq=False)
class Deck:
    """The pictures of a source."""

    shapes: Sequence[Hashable]  # of each row: only the same go into one batch
    repeats: Sequence[int]  # of each row

    @cached_property
    def cards(self) -> list[tuple[int, int]]:
        """(row, repeat) of an epoch, in the order of the rows."""
        return [(row, repeat) for row, count in enumerate(self.repeats) for repeat in range(count)]

    @cached_property
    def pile(self) -> list[int]:
        """Of each card."""
        names = list(dict.fromkeys(self.shapes))
        return [names.index(self.shapes[row]) for row, _ in self.cards]

    @cached_property
    def heights(self) -> list[int]:
        """How many cards an epoch puts on each pile."""
        return [self.pile.count(number) for number in range(max(self.pile) + 1)]

    def showings(self, row: int, batches: int, size: int) -> int:
        """The most showings of a row that so many batches can ask for."""
        return self.repeats[row] * (self.epoch(batches, size) + 1)

    def before(self, epoch: int, size: int) -> int:
        """How many batches are given before an epoch begins."""
        return sum(epoch * height // size for height in self.heights)

    def epoch(self, batch: int, size: int) -> int:
        """The one in which a batch becomes full."""
        low, high = 0, 1
        while self.before(high, size) <= batch:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.before(middle, size) <= batch else (low, middle)
        return low


def dealt(deck: Deck, batch: int, size: int, seed: int, purpose: str) -> list[Card]:
    """The `size` cards of batch number `batch`, from 0."""
    epoch = deck.epoch(batch, size)
    pile, number = _given(deck, epoch, size, seed, purpose)[batch - deck.before(epoch, size)]
    height = deck.heights[pile]
    places = range(number * size, (number + 1) * size)
    return [_shown(deck, _piled(deck, place // height, seed, purpose)[pile][place % height], place // height) for place in places]


def _shown(deck: Deck, card: int, epoch: int) -> Card:
    row, repeat = deck.cards[card]
    return Card(row, epoch * deck.repeats[row] + repeat)


@lru_cache(maxsize=64)
def _piled(deck: Deck, epoch: int, seed: int, purpose: str) -> list[list[int]]:
    """What an epoch puts on each pile, in its order."""
    piles: list[list[int]] = [[] for _ in deck.heights]
    for card in draws.order(len(deck.cards), seed, purpose, epoch).tolist():
        piles[deck.pile[card]].append(card)
    return piles


@lru_cache(maxsize=8)
def _given(deck: Deck, epoch: int, size: int, seed: int, purpose: str) -> list[tuple[int, int]]:
    """(pile, number of the batch on it) of the batches that become full in an epoch, in their order."""
    lying = [epoch * height for height in deck.heights]
    given = []
    for card in draws.order(len(deck.cards), seed, purpose, epoch).tolist():
        pile = deck.pile[card]
        lying[pile] += 1
        if lying[pile] % size == 0:
            given.append((pile, lying[pile] // size - 1))
    return given
