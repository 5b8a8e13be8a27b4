"""What a page of HTML holds, for the tests of those who write one."""

import re
from html.parser import HTMLParser


class Cells(HTMLParser):
    """The rows of cells of every table, the tags in between left out."""

    def __init__(self):
        super().__init__()
        self.lines, self.cell = [], None

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.lines.append([])
        if tag in ("th", "td"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.lines[-1].append(self.cell)
            self.cell = None


def cells(html):
    reader = Cells()
    reader.feed(html)
    return reader.lines


VOID = {"meta", "link", "br", "hr", "img", "input"}


class Elements(HTMLParser):
    """Every element with its attributes, and whether each one that is opened is closed."""

    def __init__(self, html):
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def shown(html, title):
    """The body rows of the table of that title, as cells."""
    [found] = [t for t in re.findall(r'<div class="table">.*?</table>', html, re.S) if f"<b>{title}.</b>" in t]
    return [line for line in cells(re.search(r"<tbody>.*</tbody>", found, re.S)[0]) if len(line) > 1]


def number(text):
    """(value, half of its last digit) of a number as it is printed."""
    value = float(text.rstrip("%").replace(",", ""))
    decimals = len(text.rstrip("%").partition(".")[2])
    percent = text.endswith("%")
    return (value / 100, 0.5001 * 10.0 ** -(decimals + 2)) if percent else (value, 0.5001 * 10.0**-decimals)


def check_table(html, title, rows, columns):
    """Every cell of the table of that title is the row's value; gives how many numbers were compared."""
    lines, counted = shown(html, title), 0
    assert len(lines) == len(rows) > 3, title
    for line, row in zip(lines, rows, strict=True):
        for shown_cell, (key, (_, form)) in zip(line, columns.items(), strict=True):
            assert key in row, (title, key)
            if shown_cell == "-":
                assert row[key] is None or row[key] == "-"
            elif form == "":
                assert shown_cell == row[key]
            else:
                value, slack = number(shown_cell)
                assert abs(value - row[key]) <= slack, (title, key, shown_cell, row[key])
                counted += 1
    return counted
