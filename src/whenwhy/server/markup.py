"""Words and rows of numbers flow in, the HTML of a page's cards flows out: headings, tables, chips, words."""

from __future__ import annotations

import html
from collections.abc import Sequence


def words(sentence: str) -> str:
    """The HTML that stands where a chart has nothing to draw.

    Example:
        >>> words("Nothing here.")
        '<p class="words">Nothing here.</p>'
    """
    return f'<p class="words">{html.escape(sentence)}</p>' if sentence else ""


def heading(title: str, quiet: str) -> str:
    """The HTML of a card's title, and the counts it rests on.

    Example:
        >>> heading("Age", "12 patients")
        '<h2>Age</h2><p class="quiet">12 patients</p>'
    """
    return f'<h2>{html.escape(title)}</h2><p class="quiet">{html.escape(quiet)}</p>'


def notice(sentences: Sequence[str]) -> str:
    """The HTML of warnings.

    Example:
        >>> notice(["Not <so>."])
        '<p class="warning" role="alert">Not &lt;so&gt;.</p>'
    """
    return "".join(f'<p class="warning" role="alert">{html.escape(sentence)}</p>' for sentence in sentences)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    """The HTML of a table; cells are HTML already, columns after the first hold numbers, one row may be chosen."""
    kind = [' class="n"' if i else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{k}>{html.escape(name)}</th>' for k, name in zip(kind, head, strict=True))
    body = "".join(
        ('<tr class="chosen">' if i == chosen else "<tr>")
        + "".join(f"<td{k}>{cell}</td>" for k, cell in zip(kind, row, strict=True))
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption><span>{html.escape(caption)}</span></caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def in_details(summary: str, content: str) -> str:
    """HTML that opens when asked for.

    Example:
        >>> in_details("As a table", "...")
        '<details><summary>As a table</summary>...</details>'
    """
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def choice(action: str, label: str, **told: str) -> str:
    """A button that tells the server what a person chose.

    Example:
        >>> choice("choose", "HDL", name="feature", value="hdl")
        '<button type="button" class="link" data-act="choose" data-name="feature" data-value="hdl">HDL</button>'
    """
    data = "".join(f' data-{name}="{html.escape(value)}"' for name, value in told.items())
    return f'<button type="button" class="link" data-act="{action}"{data}>{html.escape(label)}</button>'
