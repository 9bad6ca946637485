"""A sweep in the processes that torchrun has started: the first goes through the cells, the others measure with it.

Each cell is a group of processes of its own, which what fails in it ends: on every rank the cell has failed, and all
join again for the next one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hesscli.distributed import GoneError, LostError, joined, ranks
from hesscli.events import OnEvent
from hesscli.recipe import Recipe
from hesscli.run.session import run
from hesscli.run.sweep.memory import release
from hesscli.run.together import together, unseen


@dataclass(frozen=True, slots=True)
class _Errand:
    """What the first process asks of the others: one cell's run."""

    recipe: Recipe
    force: bool


@contextmanager
def with_others(recipe: Recipe, *, force: bool) -> Iterator[Recipe]:
    """Measure one cell inside, by the recipe that is given; of several processes the first is here, others `follow`.

    Raises UsageError for a placement that several processes do not have, and LostError with what another rank says.
    """
    with together(recipe, force=force, resume=True) as share:
        ranks().agreed(_Errand(recipe, force))
        yield share.recipe


def dismiss() -> None:
    """There are no more cells: the others return from `follow`."""
    with joined(wanted=False) as found:
        found.agreed(None)


def follow(*, on_event: OnEvent, on_failure: Callable[[Exception], None]) -> None:
    """Take part in every cell that the first process measures, until it dismisses this one.

    What fails is that cell's failure, and the first one records it. Raises what ends the sweep: a signal at another
    rank, and GoneError.
    """
    while True:
        try:
            with joined(wanted=True) as found:
                errand: _Errand | None = found.agreed(None)
                if errand is None:
                    return
                with unseen(errand.recipe) as recipe:
                    run(recipe, force=errand.force, resume=True, on_event=on_event)
        except Exception as error:
            if ends_all(error):
                raise
            on_failure(error)
        release()


def ends_all(error: Exception) -> bool:
    """Whether it is more than a cell's failure: a process has left, or was told to stop."""
    return isinstance(error, GoneError) or (isinstance(error, LostError) and error.interrupted)
