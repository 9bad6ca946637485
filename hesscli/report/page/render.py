"""From parts to HTML: one template, whose every value is escaped unless it is a drawing of our own."""

import base64
import hashlib
from functools import lru_cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from hesscli.report.page.dark import dark_rules
from hesscli.report.page.parts import Page

_HERE = Path(__file__).parent


def render(page: Page) -> str:
    """Return the page as one HTML document with its style and its script inside.

    Its policy allows this style and this script by their hashes, images written into the page, and nothing else: no
    text of a report could load or run anything even if it were not escaped.
    """
    drawings = [picture.svg for section in page.sections for picture in section.pictures]
    style, script = _text("style.css") + dark_rules(drawings), _text("script.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    template = _environment().get_template("page.html")
    return template.render(page=page, style=Markup(style), script=Markup(script), policy=policy)


@lru_cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
