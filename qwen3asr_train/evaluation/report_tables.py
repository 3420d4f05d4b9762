"""The report's tables of a suite."""

from collections.abc import Sequence
from html import escape

from qwen3asr_train.evaluation.tables import NOTE, Row, make_tables


def tables_section(rows: Sequence[Row]) -> str:
    """The tables of a suite as HTML; "" without rows."""
    parts = []
    for table in make_tables(rows):
        lines = "".join(f"<tr>{''.join(_cell(text, 'td') for text in line)}</tr>"
                        for line in table.lines)
        head = "".join(_cell(text, "th") for text in table.head)
        parts.append(f"<h3>{escape(table.title)}</h3><div class=\"panel\"><table><thead><tr>{head}"
                     f"</tr></thead><tbody>{lines}</tbody></table></div>")
    return "".join([*parts, f"<p>{escape(NOTE.strip())}</p>"]) if parts else ""


def _cell(text: str, tag: str) -> str:
    """A Markdown cell: bold ones are averages; figures stand to the right."""
    plain = escape(text.removeprefix("**").removesuffix("**").replace("\\|", "|"))
    if text.startswith("**"):
        plain = f"<strong>{plain}</strong>"
    return f"<{tag}>{plain}</{tag}>"
