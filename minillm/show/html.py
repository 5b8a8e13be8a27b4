"""A self-contained page of HTML: tables, figures and words in one file.

It has no script, no font and no address of another file, so a browser without a network shows all of it, and a printer
prints it. Figures are SVG inside the page, each with a title and a description. Whatever comes from outside (a name, a
path, a text) passes through ``text``, which escapes it; what is called ``markup`` here is HTML already.

The words of the page lie beside this file: style.css, and a template for the page and for each of its sections in
templates/. Templates are string.Template's: ``$name`` is replaced once, and what comes in is not looked at again. The
page names an empty icon; without it a browser asks its server for favicon.ico.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ..errors import MinillmError, show
from ..files import whole_file
from ..tables import Columns, cell
from .canvas import matplotlib_or_error
from .svg import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent  # style.css and templates/ lie beside this file


# ---- the page --------------------------------------------------------------------------------------------------------
def template(name: str) -> Template:
    """The template templates/NAME.html of this folder, without the last end of line."""
    return Template((HERE / "templates" / f"{name}.html").read_text(encoding="utf-8").removesuffix("\n"))


def text(value: object) -> str:
    """Any value as text in which <, >, & and both quotes are escaped, and what is no letter and no line's end, too."""
    return html.escape(show(value, keep="\n\t"))


def whole_page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page: a title, markup that stands first, and sections (id, heading, markup)."""
    contents = "\n".join(f'<li><a href="#{name}">{text(heading)}</a></li>' for name, heading, _ in sections)
    bodies = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-heading">\n'
        f'<h2 id="{name}-heading">{number}. {text(heading)}</h2>\n{markup}\n</section>'
        for number, (name, heading, markup) in enumerate(sections, start=1)
    )
    style = (HERE / "style.css").read_text(encoding="utf-8")
    page = template("page").substitute(title=text(title), style=style, lead=lead, contents=contents, sections=bodies)
    return page + "\n"


def write_page(path: str | Path, markup: str) -> None:
    """Write a page, first beside its target, then renamed. Raises MinillmError."""
    with whole_file(path, MinillmError) as beside:
        beside.write_bytes(markup.encode("utf-8", "backslashreplace"))


def check_page(path: str | Path) -> None:
    """Raise MinillmError for a name that does not end in .html, and where figures cannot be drawn."""
    path = Path(path)
    if path.suffix not in (".html", ".htm"):
        raise MinillmError(f"{path}: the name ends in {path.suffix or 'nothing'}, expected .html")
    matplotlib_or_error()


# ---- words -----------------------------------------------------------------------------------------------------------
def paragraph(words: str, kind: str = "") -> str:
    """Plain words as a paragraph."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def terms(pairs: Mapping[str, str]) -> str:
    """Terms, each with its explanation."""
    lines = [f"<dt>{text(term)}</dt><dd>{text(meaning)}</dd>" for term, meaning in pairs.items()]
    return "\n".join(["<dl>", *lines, "</dl>"])


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a list."""
    return "\n".join(["<ul>", *(f"<li>{text(sentence)}</li>" for sentence in sentences), "</ul>"])


def commands(lines: Sequence[str], before: str = "To repeat it") -> str:
    """Command lines that repeat a part; ``before``: what they do."""
    shown = "".join(f"<code>{text(line)}</code>" for line in lines)
    return f'<div class="repeat">{text(before)}: {shown}</div>'


# ---- tables ----------------------------------------------------------------------------------------------------------
def table(
    rows: Sequence[Mapping], columns: Columns, title: str, about: str = "", rule: str = "", within: str = ""
) -> str:
    """Rows as an HTML table in a box that scrolls by itself; columns {key: (heading, format)}.

    The format "" is for text, as in tables.text_table. The heading "reads/gate" puts "gate" under "reads". The first
    column names the row. A line is drawn where the value of the key ``rule`` changes. Where the value of the key
    ``within`` changes, it is written above the rows that share it.
    """
    kinds = [' class="text"' if form == "" else "" for _, form in columns.values()]
    headings = [heading.rpartition("/") for heading, _ in columns.values()]  # (group, "/", own heading)
    head = "".join(f'<th scope="col"{kind}>{text(own)}</th>' for (_, _, own), kind in zip(headings, kinds, strict=True))
    groups = [(group, len(list(same))) for group, same in groupby(headings, key=lambda heading: heading[0])]
    if any(group for group, _ in groups):
        above = "".join(
            f'<th class="group" scope="colgroup" colspan="{count}">{text(group)}</th>' if group else "<td></td>" * count
            for group, count in groups
        )
        head = f"{above}</tr>\n<tr>{head}"
    lines = []
    for i, row in enumerate(rows):
        first, *rest = [text(cell(row.get(key), form)) for key, (_, form) in columns.items()]
        cells = "".join(f"<td{kind}>{value}</td>" for value, kind in zip(rest, kinds[1:], strict=True))
        before = rows[i - 1] if i else {}
        if within and row[within] != before.get(within):
            lines.append(f'<tr class="within"><th scope="col" colspan="{len(columns)}">{text(row[within])}</th></tr>')
        ruled = ' class="rule"' if rule and i and row[rule] != before[rule] else ""
        lines.append(f'<tr{ruled}><th scope="row"{kinds[0]}>{first}</th>{cells}</tr>')
    body, more = "\n".join(lines), f" {text(about)}" if about else ""
    return (
        f'<div class="table">\n<p class="caption"><b>{text(title)}.</b>{more}</p>\n'
        f'<div class="wide" role="region" tabindex="0" aria-label="{text(title)}">\n'
        f'<table aria-label="{text(title)}">\n'
        f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n</div>"
    )


# ---- figures ---------------------------------------------------------------------------------------------------------
def figure(ax: Axes, name: str, title: str, caption: str) -> str:
    """A figure with a number, a title and a caption."""
    words = f'<figcaption><span class="title">{text(title)}.</span> {text(caption)}</figcaption>'
    return f'<figure id="{name}">\n<div class="plot">{svg(ax, name, title)}</div>\n{words}\n</figure>'


def beside(*markup: str) -> str:
    """Figures or tables next to each other where the page is wide enough."""
    return '<div class="beside">\n' + "\n".join(markup) + "\n</div>"
