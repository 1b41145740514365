"""How values show in a notebook: a line that says what they are, and a small table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

ROWS = 5
"""Rows of a long table that are shown."""


def shown(about: str, header: Sequence[str], rows: Iterable[Sequence[Any]], more: str = "") -> str:
    """HTML of a line, a table and a line below it; all text is escaped."""
    head = "".join(f"<th>{escape(x)}</th>" for x in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(x))}</td>" for x in row) + "</tr>" for row in rows)
    below = f"<p>{escape(more)}</p>" if more else ""
    return f"<p>{escape(about)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def shown_table(about: str, table: Any) -> str:
    """The same of an astropy table: its first rows, units in the header, numbers with as many digits as `info.format`
    says."""
    header = [f"{name} [{table[name].unit}]" if table[name].unit else name for name in table.colnames]
    first = table[:ROWS]
    rows = zip(*([x.strip() for x in first[name].info.iter_str_vals()] for name in table.colnames), strict=True)
    rest = len(table) - len(first)
    return shown(about, header, rows, f"and {rest} more rows" if rest else "")
