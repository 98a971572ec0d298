"""A report in the terminal, which obeys nothing that stands in a run's files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.compare.report import Report, Section, harmless

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_report(report: Report, console: "Console") -> None:
    """Print every section of a report, and its footnotes."""
    print_sections(report.sections, console)
    for text in report.footnotes:
        console.print(f"\n{_harmless_lines(text)}", style="dim", markup=False, highlight=False)


def print_sections(sections: Sequence[Section], console: "Console") -> None:
    """Print tables, each with its notes."""
    tables = [_table(section) if section.rows else None for section in sections]
    if not console.is_terminal:  # nothing ends where a line of a pipe does: rather a long line than a broken name
        unlimited = console.options.update(max_width=10_000)
        widths = [console.measure(table, options=unlimited).maximum for table in tables if table]
        console.width = max(console.width, *widths)
    for i, (section, table) in enumerate(zip(sections, tables, strict=True)):
        if i:
            console.print()
        if table:
            console.print(table)
        for note in section.notes:
            console.print(_harmless_lines(note), markup=False, highlight=False)


def _harmless_lines(text: str) -> str:
    return "\n".join(map(harmless, text.split("\n")))


def _table(section: Section) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(  # of Text: a name may hold [brackets], which are markup in a str
        title=Text(harmless(section.title), style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in section.columns:
        words = column in section.words
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for i, row in enumerate(section.rows):
        table.add_row(*(Text(harmless(cell)) for cell in row), style="bold green" if i in section.best else None)
    return table
