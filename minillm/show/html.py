"""A page of HTML that asks nothing of anybody: tables, figures and words in one file.

No script, no font, no address: a browser without a network shows all of it, and so does a printer. Figures are SVG
inside the page, each with a title and a description for who cannot see it. Whatever comes from outside (a name, a path,
a text) passes through ``text``, which makes it harmless; what is called ``markup`` here is HTML already.

Templates are string.Template's: ``$name`` is replaced once, and what comes in is not looked at again.
"""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ..errors import MinillmError, whole_file
from ..tables import cell
from .canvas import alt_text, matplotlib_or_error, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# ---- the page --------------------------------------------------------------------------------------------------------
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$lead
</header>
<nav aria-label="Contents">
<ol>
$contents
</ol>
</nav>
<main>
$sections
</main>
</body>
</html>
""")

# The icon above is an empty one: without it a browser asks its server for favicon.ico.
STYLE = """\
:root { --ink: #1b1b1b; --soft: #555; --line: #d8d8d8; --accent: #0b5a8f; --shade: #f5f7f9; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem 1.5rem 4rem; color: var(--ink); background: #fff;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 0 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
section { margin-top: 2.2rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
p, li, dd, blockquote { max-width: 46rem; }
p { margin: .5rem 0; }
a { color: var(--accent); }
code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .86em; }
.lead { color: var(--soft); overflow-wrap: anywhere; }
.short { background: var(--shade); border-left: .25rem solid var(--accent); padding: .8rem 1rem .8rem 2.2rem;
  margin: 1rem 0; }
.short li { margin: .25rem 0; max-width: 62rem; }
nav ol { columns: 16rem; padding-left: 1.4rem; margin: 1rem 0 0; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 29rem), 1fr)); gap: 1.2rem 2rem;
  margin: 1rem 0; align-items: start; }
figure { margin: 0; min-width: 0; }
section > figure { margin: 1.4rem 0; }
.plot { overflow-x: auto; }
.plot svg { display: block; width: 100%; height: auto; margin: 0 auto;
  min-width: calc(var(--inches) * 4.8rem); max-width: calc(var(--inches) * 6.8rem); }
figcaption { font-size: .86rem; line-height: 1.45; color: var(--soft); max-width: 38rem; margin: .3rem auto 0;
  overflow-wrap: anywhere; }
main { counter-reset: figure table; }
figure { counter-increment: figure; }
.title::before { content: "Figure " counter(figure) ". "; }
.table { counter-increment: table; margin: 1rem 0; min-width: 0; }
.caption b::before { content: "Table " counter(table) ". "; }
.title, .caption b { color: var(--ink); font-weight: 600; }
.caption { font-size: .86rem; line-height: 1.45; color: var(--soft); margin: 0 0 .4rem; }
.wide { overflow-x: auto; background: linear-gradient(to right, #fff 30%, #fff0),
  linear-gradient(to left, #fff 30%, #fff0) right, linear-gradient(to right, #0003, #0000),
  linear-gradient(to left, #0003, #0000) right; background-size: 3rem 100%, 3rem 100%, .8rem 100%, .8rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
.wide:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .86rem;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--line); }
th, td { padding: .22rem .6rem; text-align: right; border-top: 1px solid var(--line); white-space: nowrap;
  font-weight: normal; }
thead th { vertical-align: bottom; color: var(--soft); white-space: normal; min-width: 3.2rem; }
thead th.group { text-align: center; border-left: 1px solid var(--line); border-right: 1px solid var(--line); }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 5rem; max-width: 26rem; overflow-wrap: break-word; }
tbody tr:nth-child(even) { background: #0b5a8f0a; }
tbody tr.within { background: none; }
tr.within th { text-align: left; font-weight: 600; padding-top: .7rem; }
tbody tr.rule th, tbody tr.rule td { border-top: 2px solid #9a9a9a; }
dl { margin: .6rem 0; }
dt { font-weight: 600; margin-top: .5rem; }
dd { margin: 0 0 0 1rem; overflow-wrap: anywhere; }
.repeat { font-size: .88rem; color: var(--soft); max-width: none; }
.repeat code { display: block; background: var(--shade); color: var(--ink); padding: .35rem .6rem; margin: .2rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media screen and (min-width: 60rem) {
  .beside > figure:only-child { display: grid; grid-template-columns: minmax(0, 34rem) minmax(16rem, 34rem);
    grid-column: 1 / -1; gap: 1.5rem; align-items: center; }
  .beside > figure:only-child figcaption { margin: 0; }
}
@media (max-width: 64rem) {
  table { font-size: .8rem; }
  th, td { padding: .2rem .4rem; }
  thead th { min-width: 2.6rem; }
}
@media (max-width: 40rem) {
  body { padding: 1rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
}
@media print {
  @page { size: A4; margin: 14mm 12mm; }
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  a { color: inherit; text-decoration: none; }
  .short a { display: none; }
  section { margin-top: 1.2rem; padding-top: .8rem; }
  h2, h3 { break-after: avoid; }
  thead { display: table-header-group; }
  nav, .short, tr, figure, .table, .repeat { break-inside: avoid; }
  .beside { display: block; }
  figure { margin: .8rem 0; }
  .plot, .wide { overflow: visible; background: none; }
  .plot svg { width: calc(var(--inches) * 2.4cm); min-width: 0; }
  table { font-size: 7.5pt; max-width: 100%; }
  th, td { padding: .12rem .28rem; }
  thead th { min-width: 0; }
  td.text { min-width: 0; }
  th[scope=row].text { white-space: normal; min-width: 7rem; }
  tbody tr:nth-child(even), .short, .repeat code { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def text(value: object) -> str:
    """Anything as harmless text: <, >, & and both quotes are escaped."""
    return html.escape(str(value))


def whole_page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page: a title, markup that stands first, and sections (id, heading, markup)."""
    contents = "\n".join(f'<li><a href="#{name}">{text(heading)}</a></li>' for name, heading, _ in sections)
    bodies = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-heading">\n'
        f'<h2 id="{name}-heading">{number}. {text(heading)}</h2>\n{markup}\n</section>'
        for number, (name, heading, markup) in enumerate(sections, start=1)
    )
    return PAGE.substitute(title=text(title), style=STYLE, lead=lead, contents=contents, sections=bodies)


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
    """Terms and what is said of them."""
    lines = [f"<dt>{text(term)}</dt><dd>{text(said)}</dd>" for term, said in pairs.items()]
    return "\n".join(["<dl>", *lines, "</dl>"])


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a list."""
    return "\n".join(["<ul>", *(f"<li>{text(sentence)}</li>" for sentence in sentences), "</ul>"])


def commands(lines: Sequence[str]) -> str:
    """Command lines that repeat a part."""
    return f'<div class="repeat">To repeat it: {"".join(f"<code>{text(line)}</code>" for line in lines)}</div>'


# ---- tables ----------------------------------------------------------------------------------------------------------
Columns = Mapping[str, tuple[str, str]]


def table(
    rows: Sequence[Mapping], columns: Columns, title: str, about: str = "", rule: str = "", within: str = ""
) -> str:
    """Rows as an HTML table in a box that scrolls by itself; columns {heading: (key, format)}.

    The format "" is for text, as in tables.text_table; "reads/gate" puts the heading "gate" under "reads". The first
    column names the row. A line is drawn where the value of the key ``rule`` changes; where that of ``within`` does, it
    stands above the rows that share it.
    """
    kinds = [' class="text"' if form == "" else "" for _, form in columns.values()]
    headings = [heading.rpartition("/") for heading in columns]  # (group, "/", own heading)
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
        first, *rest = [text(cell(row.get(key), form)) for key, form in columns.values()]
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
def svg(figure: Axes, name: str, title: str) -> str:
    """The figure of an Axes as SVG for the inside of a page; its alt text is its description.

    name: of this figure alone, put before every id, for matplotlib gives the same ones to all figures. What is left out
    has no use there: the names of XML's dialects, comments, the file's own description.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        save_figure(figure, path)
        drawing = path.read_text(encoding="utf-8")
    start, end = drawing.index("<svg"), drawing.rindex("</svg>")
    body = drawing[drawing.index(">", start) + 1 : end]
    for useless in ("<!--.*?-->", "<title>.*?</title>", "<metadata>.*?</metadata>", "<style.*?</style>"):
        body = re.sub(useless, "", body, flags=re.S)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(\bid="|\bhref="#|\burl\(#)', rf"\g<1>{name}-", body)
    box = re.search(r'viewBox="([^"]*)"', drawing[start:])[1]
    inches = f"{figure.figure.get_size_inches()[0]:g}"
    style = f"--inches: {inches}; stroke-linejoin: round; stroke-linecap: butt"  # the latter as in matplotlib's <style>
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-words" viewBox="{box}" style="{style}">\n'
        f'<title id="{name}-title">{text(title)}</title>\n<desc id="{name}-words">{text(alt_text(figure))}</desc>'
        + re.sub(r"\n\s*", "\n", body)
        + "</svg>"
    )


def figure(drawn: Axes, name: str, title: str, caption: str) -> str:
    """A figure with a number, a title and a caption."""
    words = f'<figcaption><span class="title">{text(title)}.</span> {text(caption)}</figcaption>'
    return f'<figure id="{name}">\n<div class="plot">{svg(drawn, name, title)}</div>\n{words}\n</figure>'


def beside(*markup: str) -> str:
    """Figures or tables beside each other where there is room."""
    return '<div class="beside">\n' + "\n".join(markup) + "\n</div>"
