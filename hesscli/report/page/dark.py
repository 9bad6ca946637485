"""Drawings in the dark: a counterpart for each of their colours, which were chosen for white paper."""

import re
from collections.abc import Iterable
from colorsys import hls_to_rgb, rgb_to_hls

_PAPER = (0x18, 0x1C, 0x21)  # --surface of style.css in the dark
# WCAG 2.2: 3 to 1 for a line (1.4.11), 4.5 to 1 for words (1.4.3).
_CONTRAST = 5.0
_GREY = 0.06  # below this saturation a colour is ink, paper or something between
_DARKEST, _LIGHTEST = 0.11, 0.92


def dark_rules(drawings: Iterable[str]) -> str:
    """Return style rules that give each line and area of the drawings a colour that shows on dark paper.

    Greys change places, as ink and paper do; other colours are mixed with white until their contrast is 5 to 1. White
    is not among them: it stands for the paper, or for a word on an image.
    """
    found = {match for svg in drawings for match in re.findall(r'(fill|stroke)="(#[0-9a-f]{6})"', svg)}
    rules = [
        f'  .drawing svg [{kind}="{colour}"] {{ {kind}: {in_the_dark(colour)}; }}\n'
        for kind, colour in sorted(found)
        if colour != "#ffffff"
    ]
    return f"@media (prefers-color-scheme: dark) {{\n{''.join(rules)}}}\n" if rules else ""


def in_the_dark(colour: str) -> str:
    """Return the counterpart of `#rrggbb`."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, saturation = rgb_to_hls(red, green, blue)
    if max(red, green, blue) - min(red, green, blue) < _GREY:
        return _hex(hls_to_rgb(hue, _DARKEST + (_LIGHTEST - _DARKEST) * (1 - light), saturation))
    while contrast((red, green, blue)) < _CONTRAST:
        red, green, blue = (part + 0.04 * (1 - part) for part in (red, green, blue))
    return _hex((red, green, blue))


def contrast(colour: tuple[float, float, float]) -> float:
    """Return the contrast of a colour, its parts from 0 to 1, with dark paper (WCAG 2.2, contrast ratio)."""
    one, other = _luminance(colour), _luminance((_PAPER[0] / 255, _PAPER[1] / 255, _PAPER[2] / 255))
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def _luminance(colour: tuple[float, float, float]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)
