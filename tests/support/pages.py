"""What a page of HTML holds, for the tests of those who write one."""

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
