"""Which layers a product opens one after the other, as an equal product before it did: what can be sent ahead."""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Opening:
    """One layer that a product opened."""

    layer: int
    """The id of the module."""
    sends: bool | None = None
    """Whether any rank had a result of it; None until that is agreed on."""


@dataclass(slots=True)
class Order:
    """The openings of a product under way, and of the last one that was made with the same key.

    Every rank opens the same layers in the same order, so what one of them expects all of them do. An expectation that
    fails is given up for the rest of the product.
    """

    _known: dict[Hashable, list[Opening]] = field(default_factory=dict)
    _key: Hashable = None
    _expected: list[Opening] = field(default_factory=list)
    _made: list[Opening] = field(default_factory=list)

    def begin(self, key: Hashable) -> None:
        """A product begins."""
        self._key, self._expected, self._made = key, self._known.get(key, []), []

    def end(self) -> None:
        """It has come to its end."""
        self._known[self._key] = self._made
        self._expected, self._made = [], []

    def give_up(self) -> None:
        """It has not."""
        self._expected, self._made = [], []

    def open(self, layer: int) -> Opening:
        """Note an opening; whether it sends is known where an equal product was made before."""
        place = len(self._made)
        if self._expected and (place >= len(self._expected) or self._expected[place].layer != layer):
            self._expected = []
        opening = Opening(layer, self._expected[place].sends if self._expected else None)
        self._made.append(opening)
        return opening

    def following(self) -> int | None:
        """The layer that is expected next; None at the end, and where nothing is known."""
        place = len(self._made)
        return self._expected[place].layer if place < len(self._expected) else None
