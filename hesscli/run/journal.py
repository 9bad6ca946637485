"""What happened in a run, as it happened: `journal.jsonl` in the run's folder, one JSON object a line.

Every line has `run_id`, `step` (products so far, replayed ones among them), `time` (UTC) and `kind`:

- `started`: `attempt` (1, and one more each time that a run which was cut off goes on in the same file), `resumed`
  (whether products of an earlier attempt are there; they come as `replayed`), `probe`, `operator`, `dimension`.
- `loss`: `value`.
- `gradient`: `seconds`, `norm`, `finite`.
- `product`: one for each H v. `seconds` (of one: what was made together took `together` times as long; null where it
  was replayed), `norm_v`, `norm_hv`, `finite`, `replayed`, `resident_bytes` and `peak_bytes` by device.
- `products`: `count` products that were made group of rows by group of rows, in `seconds`.
- `stage`: `stage`, `state` (`started`, with `total`, or `finished`).
- `step`: one of a probe's: `stage`, `done`, and what the probe knows: `beta` of a Krylov step (`betas` of several runs
  side by side), `leading_value` and `leading_residual` of the pair with the largest value, `residual` of a solve.
- `non_finite`: `where` (`loss`, `gradient`, `product`), its number `product`, the counts `nan` and `inf`, and the first
  `parameter` that holds one.
- `warning`: `code`, `text`. `note`: `text`, as which product was chosen and why.
- `ended`: `status` (of the report; `failed` or `interrupted` where there is none), `text`, `matvecs`, `replayed`,
  `seconds`, `latency` (`min`, `p50`, `p95`, `max`, `mean` seconds of the products that were made), `gradients` (what
  they cost in gradients, by the clock), `non_finite`, `retreats` from a lack of memory.

A number that is not finite is null. A line is written whole by one call and is there when the process is killed the
next moment; the last one may be torn where the machine itself stops, and is cut off when the run goes on.
"""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hesscli.errors import DoesNotFitError, HessError
from hesscli.events import Advanced, Event, Finished, Noted, OnEvent, Started, Warned, ignore
from hesscli.linalg.space import ParameterSpace, ParameterVector
from hesscli.report.schema import NonFinite
from hesscli.run.environment import held_bytes, own_peak_bytes
from hesscli.run.faults import is_out_of_memory
from hesscli.run.retreat import RETREAT
from hesscli.run.storage.folder import JOURNAL, STATE

OBSERVED = {
    "top eigenvalue": "report: metrics.lambda_max",
    "condition number": "report: metrics.condition_number",
    "iterations of conjugate gradients": "report: metrics.cg_iterations",
    "memory": "report: cost.peak_bytes",
    "latency of a product": "journal: ended.latency",
    "variance across batches": "report: metrics.trace_batch_spread",
    "counts of NaN": "report: cost.non_finite.nan",
    "counts of Inf": "report: cost.non_finite.inf",
    "out of memory": "report: cost.retreats",
    "cost in gradients": "journal: ended.gradients",
}
"""Where each quantity stands that one watches a profiler by; a test finds them there in real runs."""


@dataclass(frozen=True, slots=True)
class Made:
    """Products that were asked for together; `seconds` of them all, None where they were replayed."""

    inputs: Sequence[ParameterVector]
    products: Sequence[ParameterVector]
    seconds: float | None


class Journal:
    """Writes the journal of one run to a folder, and counts what is not finite.

    A product costs two norms beside itself, of what goes in and what comes out. Where the disk refuses, the journal
    ends with a warning, and the run goes on.
    """

    def __init__(self, folder: Path, space: ParameterSpace, *, run_id: str, on_event: OnEvent = ignore) -> None:
        self._path, self._space, self.run_id, self._on_event = folder / JOURNAL, space, run_id, on_event
        self._file: BinaryIO | None = None
        self._seconds: list[float] = []
        self._gradient_seconds: float | None = None
        self.step = self.num_replayed = self.num_retreats = 0
        self.non_finite = NonFinite()

    @contextmanager
    def open(self, *, resumed: bool, **facts: Any) -> Iterator["Journal"]:
        """Write within. What fails inside is noted as the end.

        The file goes again where nothing else is left of the run: it was refused, or interrupted, and kept no products.
        """
        earlier = sum(line["kind"] == "started" for line in read_journal(self._path))
        try:
            self._file = _appending(self._path)
            self.write("started", attempt=earlier + 1, resumed=resumed, dimension=self._space.dimension, **facts)
            yield self
        except BaseException as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            word = "failed" if isinstance(error, Exception) else "interrupted"
            self.end(word, f"{type(error).__name__}: {text}")
            if not earlier and not self._is_worth_keeping(error):
                self._path.unlink(missing_ok=True)
            raise
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __call__(self, event: Event) -> None:
        """Note an event of the numerics."""
        if isinstance(event, Started):
            self.write("stage", stage=event.stage, state="started", total=event.total)
        elif isinstance(event, Finished):
            self.write("stage", stage=event.stage, state="finished")
        elif isinstance(event, Advanced) and event.values:
            self.write("step", stage=event.stage, done=event.done, **event.values)
        elif isinstance(event, Warned):
            self.num_retreats += event.code == RETREAT
            self.write("warning", code=event.code, text=event.text)
        elif isinstance(event, Noted):
            self.write("note", text=event.text)

    def loss(self, value: float) -> None:
        """Note the loss."""
        self.write("loss", value=value)
        if not math.isfinite(value):
            self._found("loss", nan=int(math.isnan(value)), inf=int(math.isinf(value)), parameter=None)

    def gradient(self, gradient: ParameterVector, seconds: float) -> None:
        """Note the gradient."""
        self._gradient_seconds, norm = seconds, self._space.norm(gradient)
        self.write("gradient", seconds=seconds, norm=norm, finite=self._is_finite("gradient", gradient, norm))

    def made(self, made: Made) -> None:
        """Note products, one line each."""
        count = len(made.products)
        seconds = None if made.seconds is None else made.seconds / count
        for v, product in zip(made.inputs, made.products, strict=True):
            self.step += 1
            norm_v, norm_hv = self._space.norm(v), self._space.norm(product)
            finite = self._is_finite("product", product, norm_hv)
            if seconds is None:
                self.num_replayed += 1
            else:
                self._seconds.append(seconds)
            memory = {"resident_bytes": held_bytes(), "peak_bytes": own_peak_bytes()}
            facts = {"seconds": seconds, "together": count, "norm_v": norm_v, "norm_hv": norm_hv, "finite": finite}
            self.write("product", **facts, replayed=seconds is None, **memory)

    def counted(self, count: int, seconds: float) -> None:
        """Note products that were made in other ways than by a call of the operator."""
        self.step += count
        self.write("products", count=count, seconds=seconds)
        self._seconds += [seconds / count] * count if count else []

    def end(self, status: str, text: str = "") -> None:
        """Note how it ended, with the sums over the whole run."""
        total, gradient = sum(self._seconds), self._gradient_seconds
        self.write(
            "ended",
            status=status,
            text=text,
            matvecs=self.step,
            replayed=self.num_replayed,
            seconds=total,
            latency=_latency(self._seconds),
            gradients=total / gradient if gradient else None,
            non_finite=self.non_finite.model_dump(),
            retreats=self.num_retreats,
        )

    def write(self, kind: str, **values: Any) -> None:
        """Append one line."""
        if self._file is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"run_id": self.run_id, "step": self.step, "time": now, "kind": kind} | values
        try:
            self._file.write((json.dumps(_finite(line), ensure_ascii=False) + "\n").encode())
        except OSError as error:
            self._file.close()
            self._file = None
            self._on_event(Warned("journal", f"the journal ends here: {error.strerror or error}"))

    def _is_worth_keeping(self, error: BaseException) -> bool:
        if any((self._path.parent / STATE).glob("*.safetensors")) or isinstance(error, DoesNotFitError):
            return True
        crashed = isinstance(error, Exception) and not isinstance(error, HessError)
        return crashed and (self.step > 0 or is_out_of_memory(error))

    def _is_finite(self, where: str, vector: ParameterVector, norm: float) -> bool:
        if math.isfinite(norm):
            return True
        counts = self._space.ranks.sum(
            np.array([[float(part.isnan().sum()), float(part.isinf().sum())] for part in vector])
        )
        if not counts.any():
            return True  # the length alone is beyond what a float holds
        nan, inf = (int(count) for count in counts.sum(axis=0))
        first = self._space.names[int(np.flatnonzero(counts.sum(axis=1))[0])]
        self._found(where, nan=nan, inf=inf, parameter=first)
        return False

    def _found(self, where: str, *, nan: int, inf: int, parameter: str | None) -> None:
        product, known = self.step if where == "product" else None, self.non_finite
        self.write("non_finite", where=where, product=product, nan=nan, inf=inf, parameter=parameter)
        is_first = known.where is None
        self.non_finite = known.model_copy(update={"nan": known.nan + nan, "inf": known.inf + inf})
        if not is_first:
            return
        self.non_finite = self.non_finite.model_copy(
            update={"where": where, "product": product, "parameter": parameter}
        )
        which = f"product {product}" if product is not None else f"the {where}"
        inside = f", the first in {parameter}" if parameter is not None else ""
        self._on_event(Warned("non-finite", f"{which} holds {nan} NaN and {inf} Inf{inside}"))


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal; none where there is no file. A last line that is torn is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def _appending(path: Path) -> BinaryIO:
    """The file to append to, without the torn line that it may end with. Nothing is kept back in a buffer."""
    file = path.open("ab", buffering=0)
    whole = path.read_bytes().rfind(b"\n") + 1
    file.truncate(whole)
    return file


def _latency(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    p50, p95 = (float(p) for p in np.quantile(seconds, [0.5, 0.95]))
    return {"min": min(seconds), "p50": p50, "p95": p95, "max": max(seconds), "mean": statistics.fmean(seconds)}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
