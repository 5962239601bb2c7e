"""Markdown of the generated reference: wrapped paragraphs and rows of tables."""

import textwrap


def prose(text: str) -> str:
    """Wraps a paragraph or a list item at 100 columns."""
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def table_row(*cells: str) -> str:
    """Returns a row of a table. A bar within a cell is escaped: it would end the cell."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
