"""Where a revision stands in training, read from its name: step50, checkpoint-500, step10k, step1000-tokens5B."""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMbBgG](?![A-Za-z]))?")
_THOUSANDS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000, "g": 1_000_000_000}


def positions(names: Sequence[object]) -> list[float | None]:
    """The step of each name, or a number as it is; None where a name does not say, as auto among numbers.

    Names that differ in their numbers alone, at least two of them, are steps of one training; where several numbers
    differ, the first of them counts, so the step and not the tokens in `step1000-tokens4B`. Commits are no steps.
    """
    numbers = [float(n) if isinstance(n, int | float) and not isinstance(n, bool) else None for n in names]
    words = [str(name) for name, number in zip(names, numbers, strict=True) if number is None]
    if len(words) < max(1, len(names) - 1) and not any(_NUMBER.search(word) for word in words):
        return numbers
    texts = [name if isinstance(name, str) and not re.fullmatch(r"[0-9a-f]{12,40}", name) else "" for name in names]
    skeletons = [_NUMBER.sub("#", text) for text in texts]
    numbered = {s for s in skeletons if "#" in s and skeletons.count(s) > 1}
    rows = [_numbers(text) if s in numbered else None for text, s in zip(texts, skeletons, strict=True)]
    if len(numbered) != 1:  # several trainings: their steps do not share an axis by name alone
        return [None] * len(names)
    known = [row for row in rows if row is not None]
    differing = [i for i, column in enumerate(zip(*known, strict=True)) if len(set(column)) > 1]
    if not differing:
        return [None] * len(names)
    return [None if row is None else row[differing[0]] for row in rows]


def natural_order(names: Sequence[object]) -> list[int]:
    """The indices of the names in the order of their steps; those without one come last, as they were given."""
    steps = positions(names)
    return sorted(range(len(names)), key=lambda i: (steps[i] is None, steps[i] or 0.0, i))


def _numbers(text: str) -> list[float]:
    return [float(digits) * _THOUSANDS[unit.lower()] for digits, unit in _NUMBER.findall(text)]
