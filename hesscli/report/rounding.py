"""Numbers as they are printed: no digit that the error does not support."""

import math

MINUS = "\N{MINUS SIGN}"
# Powers of ten between these are written out: 0.00123, 123456.
SMALLEST, LARGEST = -4, 6
# Digits that a value is given at most, however small its error.
MOST = 8


def with_error(value: float, halfwidth: float | None) -> str:
    """Return `value ± halfwidth`: the error to two significant digits, the value to the same place.

    Very large and very small figures share one power of ten, as in `(1.234 ± 0.012)e-07`. Without an error
    the value has three significant digits; an error of zero is printed as `± 0`; an error
    beyond the eighth digit is printed by itself, as in `500.00000 ± 1.0e-09`.
    """
    if halfwidth is None or not math.isfinite(halfwidth):
        return significant(value, 3)
    halfwidth = abs(halfwidth)
    if halfwidth == 0:
        return f"{significant(value, 6)} ± 0"
    place = _place(halfwidth, 2)
    if value and place + _power(value) >= MOST:
        return f"{significant(value, MOST)} ± {halfwidth:.1e}"
    rounded = _round(value, place)
    power = _power(max(abs(rounded), halfwidth))
    if SMALLEST <= power < LARGEST:
        shown = max(place, 0)
        return f"{_fixed(rounded, shown)} ± {_fixed(_round(halfwidth, place), shown)}"
    shown = max(place + power, 0)
    scale = 10.0**power
    return f"({_fixed(rounded / scale, shown)} ± {_fixed(_round(halfwidth, place) / scale, shown)})e{power:+03d}"


def apart(value: float, halfwidth: float) -> tuple[str, str]:
    """Return the two halves of `with_error` for two columns of a table, each with its own power of ten."""
    text = with_error(value, halfwidth)
    shared = text.startswith("(")
    number, error = text.removeprefix("(").split(" ± ")
    if not shared:
        return number, error
    error, power = error.split(")")
    return number + power, f"{abs(halfwidth):.1e}"


def arm(length: float) -> str:
    """Return one arm of an interval with at most two significant digits: 0.33, 4, 240, 8.1e-05."""
    text = f"{length:.2g}"
    return significant(length, 2) if "e+" in text else text


def significant(value: float, digits: int) -> str:
    """Return the value with so many significant digits and a true minus sign."""
    if value == 0:
        return "0"
    place = _place(value, digits)
    power = _power(_round(value, place))
    if SMALLEST <= power < LARGEST:
        return _fixed(_round(value, place), max(place, 0))
    return f"{value:.{digits - 1}e}".replace("-", MINUS, 1) if value < 0 else f"{value:.{digits - 1}e}"


def _power(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _place(value: float, digits: int) -> int:
    """Return how many decimals show so many significant digits; 0.0996 with two is 0.10, not 0.100."""
    place = digits - 1 - _power(value)
    return place if _power(_round(value, place)) == _power(value) else place - 1


def _round(value: float, place: int) -> float:
    # round() with many places is the value itself for a tiny value, as it should be.
    return round(value, place)


def _fixed(value: float, place: int) -> str:
    text = f"{value:.{place}f}"
    # A negative figure that rounds to zero has no sign.
    return text.replace("-", MINUS if text.strip("-0.") else "")
