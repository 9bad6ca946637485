"""The examination in the terminal."""

from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hesscli.report.words import DASH
from hesscli.run.doctor.document import Examination, SelfTest, Tried
from hesscli.run.planning.table import size


def render(found: Examination, console: Console) -> None:
    """Print it to the console; nothing is wider than it."""

    def line(text: str, style: str = "") -> None:
        for piece in wrap(text, console.width, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "):
            console.print(Text(piece, style=style), highlight=False)

    line(", ".join(f"{name} {version}" for name, version in found.versions.items()))
    line("extras: " + ", ".join(f"{name} {version or 'missing'}" for name, version in found.extras.items()))
    for name, value in found.settings.items():
        line(f"{name}: {value}")
    for device in found.devices:
        line(
            f"{device.name}: {device.hardware}, {size(device.free_bytes)} free of {size(device.total_bytes)}, "
            f"float32 products to {device.fp32_error:.0e}"
        )
    console.print(Padding(_tried_table(found.derivatives), (1, 0, 0, 0), expand=False))
    if any(not one.relied_on for one in found.derivatives):
        line("* not relied on: other kernels are taken while products are made")
    console.print(Padding(_test_table(found.self_tests), (1, 0, 0, 0), expand=False))
    console.print()
    for trouble in found.troubles:
        word, style = ("FAILED", "bold red") if trouble.failed else ("note", "")
        line(f"{word}: {trouble.text}; {trouble.remedy}", style)
    passed = sum(test.passed for test in found.self_tests)
    line(f"{passed} of {len(found.self_tests)} self-tests passed in {found.seconds:.0f} s", "bold")


def _tried_table(tried: list[Tried]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    several = len({one.device for one in tried}) > 1
    for name in ["second derivatives of", *(["on"] * several), "double backward", "forward mode"]:
        table.add_column(name, no_wrap=name == "on")
    for one in tried:
        mark = "" if one.relied_on else " *"
        cells = [one.operation + mark, *([one.device] * several)]
        answers = zip((one.double_backward, one.forward_mode), one.errors, strict=True)
        cells += [answer if error is None else f"{answer} ({error:.0e})" for answer, error in answers]
        table.add_row(*map(Text, cells))
    return table


def _test_table(tests: list[SelfTest]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    several = len({one.device for one in tests}) > 1
    table.add_column("self-test")
    for name in [*(["on"] * several), "error", "limit", "verdict"]:
        table.add_column(name, no_wrap=True)
    for one in tests:
        error = DASH if one.error is None else f"{one.error:.1e}"
        verdict = Text("pass") if one.passed else Text("FAIL", style="bold red")
        cells = [one.name, *([one.device] * several), error, f"{one.limit:.0e}"]
        table.add_row(*map(Text, cells), verdict)
    return table
