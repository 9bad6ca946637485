"""What a page is made of, as data: the template alone knows HTML."""

from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text, and what it is sorted by."""

    text: str
    order: float | str | None = None
    """None: by its text."""
    note: str = ""
    """A smaller line under the text."""
    look: str = ""
    """A class of the style sheet; what it says stands in words too."""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column."""

    name: str
    numeric: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be sorted by any of its columns; the first cell of a row is the row's head."""

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]


@dataclass(frozen=True, slots=True)
class Picture:
    """An inline drawing and its caption; `table` names the file that holds its numbers, if it lies beside the page."""

    svg: Markup
    caption: str
    table: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning or a verdict in a box."""

    kind: str
    """`good`, `unsure` or `bad`."""
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied as it stands."""

    caption: str
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with its own heading; what is empty is left out."""

    id: str
    title: str
    lead: str = ""
    notices: list[Notice] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    """(text, relative address) of files beside the page."""

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return any((self.notices, self.pictures, self.tables, self.facts, self.codes, self.links))


@dataclass(frozen=True, slots=True)
class Card:
    """A figure in large letters."""

    name: str
    value: str
    error: str
    note: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the template needs."""

    title: str
    kicker: str
    """What kind of page this is, over the title."""
    finding: str
    badges: list[Notice]
    lines: list[str]
    """What was measured."""
    cards: list[Card]
    sections: list[Section]
    footer: str
