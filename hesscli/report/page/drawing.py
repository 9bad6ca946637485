"""Figures as inline SVG: no style attribute, no image from elsewhere, names that are one figure's own.

matplotlib writes a file that stands by itself. In a page two of them would share names, their style sheets would reach
the rest of the page, and a policy that allows no inline style would turn all lines black.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_XLINK = "{http://www.w3.org/1999/xlink}href"
# Colours of parts that follow the page, light or dark; style.css maps what is written here.
_INK = "#1a1a1a"
_PIXELS = 96 / 72  # of a page in a point of the drawing, as CSS has it
_TRANSPARENT: Any = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.facecolor": "#ffffff",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def inline(figure: "Callable[[], Figure]", name: str, label: str) -> Markup:
    """Return what `figure` draws as an `svg` element; `label` says to a screen reader what it shows.

    `name` goes in front of every id. The page's style sheet recolours all of it in the dark but an image.
    """
    import matplotlib as mpl

    from hesscli.report.figures.canvas import style

    text = io.StringIO()
    with style(), mpl.rc_context(_TRANSPARENT):
        figure().savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Parsed without its comments: they hold every text of the figure as it stands.
    root = ElementTree.fromstring(text.getvalue())
    return Markup(ElementTree.tostring(_made_inline(root, name, label), encoding="unicode"))


def _made_inline(root: ElementTree.Element, name: str, label: str) -> ElementTree.Element:
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = {match for element in root.iter() for text in element.attrib.values() for match in _references(text)}
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = _attributes(element, name, used)
        element.tail = None
        if element.text and not element.text.strip():
            element.text = None
    _paint_where_used(root)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("width", f"{float(root.get('viewBox', '0 0 600 400').split()[2]) * _PIXELS:.0f}")
    # What the style sheet of matplotlib says of every element.
    root.attrib |= {"stroke-linejoin": "round", "role": "img", "aria-label": label, "focusable": "false"}
    return root


def _paint_where_used(root: ElementTree.Element) -> None:
    """Move the paint of a mark from its definition to each of its uses: a page's style sheet reaches no further."""
    marks = {f"#{element.get('id')}": element for element in root.iter("path") if element.get("id")}
    for use in root.iter("use"):
        mark = marks.get(use.get("href", ""))
        if mark is not None:
            use.attrib |= {key: text for key, text in mark.attrib.items() if key not in ("id", "d", "transform")}
    for mark in marks.values():
        mark.attrib = {key: text for key, text in mark.attrib.items() if key in ("id", "d", "transform")}


def _attributes(element: ElementTree.Element, name: str, used: set[str]) -> dict[str, str]:
    found = {}
    for key, text in element.attrib.items():
        if key == "id":
            if text in used:
                found["id"] = f"{name}-{text}"
        elif key == "style":
            # Each property of an SVG style is an attribute too.
            found |= {
                p.strip(): v.strip() for p, _, v in (part.partition(":") for part in text.split(";")) if v.strip()
            }
        elif key == "d":
            found["d"] = _shortened(text)
        elif key == _XLINK:
            found["href"] = f"#{name}-{text[1:]}" if text.startswith("#") else text
        elif not key.startswith("{"):
            found[key] = text
    return {key: re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text) for key, text in found.items()}


def _references(text: str) -> list[str]:
    return [*re.findall(r"url\(#([^)]+)\)", text), *([text[1:]] if text.startswith("#") else [])]


def _shortened(path: str) -> str:
    """Return a path in hundredths of a point: a tenth of what a screen shows."""
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), path).replace(
        "\n", ""
    )


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
