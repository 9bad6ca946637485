"""From an assertion and two measurements to a verdict.

An assertion is about the slice that was measured. It passes if all of its interval satisfies it, fails if none of it
does, and is inconclusive otherwise; intervals are those of 95 %. `unchanged` asks the other question, whether a change
was shown: it fails if one was, at a chance of false alarm of ALPHA over all `unchanged` of one call together
(Bonferroni), so that ten of them do not cry wolf ten times as often.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite

from hesscli.errors import UsageError
from hesscli.report.comparing.combination import Figure
from hesscli.report.comparing.comparability import unlike
from hesscli.report.comparing.difference import Difference, difference, figure_of
from hesscli.report.comparing.measured import Measured
from hesscli.report.gating.grammar import Assertion, Comparison, Expression, Name, Number, Unchanged, names_of
from hesscli.report.gating.quantity import Arithmetic, Quantity, Unknown, plus
from hesscli.report.rounding import MINUS, apart, significant, with_error
from hesscli.report.schema import Gate, Verdict

ALPHA = 0.05


@dataclass
class Case:
    """The measurement that is judged, and the baseline."""

    new: Measured
    base: Measured | None
    figures: dict[str, Figure] = field(default_factory=dict)

    def figure(self, path: str, alone: str | None) -> Figure:
        """Return the figure of a name; `alone` is what `base` by itself stands for.

        Raises UsageError where there is no such figure, Unknown where it has no value or no interval.
        """
        path = re.sub(r"\[[\"']([^\"']*)[\"']\]", r".\1", path)
        if path == "base":
            if alone is None:
                raise UsageError("assert", "'base' stands for the one figure beside it", "write base.NAME")
            path = f"base.{alone}"
        if path not in self.figures:
            of_base = path.startswith("base.")
            name = path.removeprefix("base.")
            found = self._measured(of_base)
            if name not in found.metrics:
                raise _no_such_figure(name, found, of_base=of_base)
            if of_base and name in self.new.metrics and (why := unlike(found, self.new, name)):
                raise Unknown(name, f"is {why}")
            figure = figure_of(found, name, source="base" if of_base else "new")
            if isinstance(figure, str):
                raise Unknown(path, f"cannot be judged: {figure}")
            self.figures[path] = figure
        return self.figures[path]

    def _measured(self, of_base: bool) -> Measured:
        if not of_base:
            return self.new
        if self.base is None:
            raise UsageError("baseline", "is missing: an assertion speaks of the base", "give --baseline FILE")
        return self.base


def judge(assertions: Sequence[Assertion], new: Measured, base: Measured | None, *, num_unchanged: int) -> list[Gate]:
    """Return the verdict of each assertion; `num_unchanged` of one call share the false alarm.

    A measurement that is not trustworthy passes nothing. Raises UsageError where an assertion names a figure that
    there is not.
    """
    if new.status == "untrustworthy":
        text = f"the report is not trustworthy: {new.status_text}" if new.status_text else "it is not trustworthy"
        return [Gate(expr=a.text, verdict="fail", text=text) for a in assertions]
    case = Case(new, base)
    return [_judged(a, case, num_unchanged) for a in assertions]


def overall(gates: Sequence[Gate]) -> Verdict:
    """Return the verdict of all gates together: the worst."""
    verdicts = {gate.verdict for gate in gates}
    return "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"


def _judged(assertion: Assertion, case: Case, num_unchanged: int) -> Gate:
    try:
        if isinstance(assertion, Unchanged):
            verdict, text = _unchanged(assertion, case, num_unchanged)
        else:
            verdict, text = _compared(assertion, case)
    except Unknown as reason:
        verdict, text = "inconclusive", str(reason)
    return Gate(expr=assertion.text, verdict=verdict, text=text)


def _compared(assertion: Comparison, case: Case) -> tuple[Verdict, str]:
    names = names_of(assertion)
    own = {name for name in names if name != "base" and not name.startswith("base.")}
    alone = next(iter(own)) if len(own) == 1 else None
    figures = {name: case.figure(name, alone) for name in names}
    arithmetic = Arithmetic(ALPHA / max(1, len(figures)))
    left, right = (_value(side, figures, arithmetic) for side in (assertion.left, assertion.right))
    excess = plus(left, right, -1.0) if assertion.relation[0] == "<" else plus(right, left, -1.0)
    found = excess.interval(alpha=ALPHA)
    if not all(map(isfinite, (found.low, found.high))):
        raise Unknown("the expression", "is beyond what a number holds")
    strict = len(assertion.relation) == 1
    verdict: Verdict
    if found.high < 0 or (found.high == 0 and not strict):
        verdict, what = "pass", "over the whole interval"
    elif found.low > 0 or (found.low == 0 and strict):
        verdict, what = "fail", "nowhere in the interval"
    else:
        verdict, what = "inconclusive", "in a part of the interval only"
    shown = f"{_shown(left)} {assertion.relation} {_shown(right)} holds {what}"
    if not (left.is_constant or right.is_constant):
        between = plus(left, right, -1.0).interval(alpha=ALPHA)
        shown += f" (difference {with_error(between.value, between.halfwidth)})"
    return verdict, shown


def _value(node: Expression, figures: dict[str, Figure], arithmetic: Arithmetic) -> Quantity:
    if isinstance(node, Number):
        return Quantity(node.value)
    if isinstance(node, Name):
        return Quantity(0.0, {figures[node.path]: 1.0})
    return arithmetic.apply(node.sign, [_value(operand, figures, arithmetic) for operand in node.operands])


def _shown(quantity: Quantity) -> str:
    if quantity.is_constant:
        return f"{quantity.constant:g}".replace("-", MINUS, 1)
    found = quantity.interval(alpha=ALPHA)
    return with_error(found.value, found.halfwidth)


def _unchanged(assertion: Unchanged, case: Case, num_unchanged: int) -> tuple[Verdict, str]:
    base, new = (case.figure(f"{of}{assertion.name}", None) for of in ("base.", ""))
    found = difference(base, new, alpha=ALPHA / max(1, num_unchanged), min_change=assertion.tolerance)
    return ("pass" if found.verdict == "~" else "fail"), changed_words(found)


def changed_words(found: Difference) -> str:
    """Return the change in words: how large it is, and what would have gone unnoticed."""
    change = found.change
    before, now = (
        apart(value, change.halfwidth)[0] if change.halfwidth else significant(value, 6)
        for value in (found.base, found.new)
    )
    text = f"{before} before, {now} now: "
    text += f"change {with_error(change.value, change.halfwidth)}"
    if found.base:
        text += f", {significant(100 * change.value / abs(found.base), 2)} %"
    if found.verdict == "~" and change.halfwidth and found.base:
        text += f"; changes below {significant(100 * change.halfwidth / abs(found.base), 2)} % go unnoticed"
    return text


def _no_such_figure(name: str, found: Measured, *, of_base: bool) -> UsageError:
    known = list(found.metrics)
    near = get_close_matches(name, known, n=1)
    top = [n for n in known if not n.startswith("blocks.")]
    what = f"{name!r} is no figure of {'the baseline' if of_base else f'a {found.command} report'}"
    return UsageError("assert", what, f"did you mean {near[0]}?" if near else f"figures are {', '.join(top)}")
