"""Markup: nothing from outside is taken for HTML, tables show the rows, figures do not share ids, files are whole."""

import re
import sys
from xml.etree import ElementTree

import pytest
from pages import cells

from minillm.errors import MinillmError
from minillm.show import html as markup
from minillm.show.results_distributions import natural_by_layer

NASTY = "<b>&\"'</b><script>alert(1)</script> $title é😀"
ROWS = [
    {"name": "a", "part": "x", "share": 0.25, "bytes": 1234567, "none": None},
    {"name": NASTY, "part": "y", "share": 1.0, "bytes": 8, "none": None},
]
COLUMNS = {"name": ("name", ""), "share": ("size/share", ".1%"), "bytes": ("size/bytes", ","), "none": ("none", ".3f")}


def drawn():
    return natural_by_layer({"m": [{"layer": i, "mid_zeros": i / 4} for i in range(3)]}, "mid_zeros")


def test_a_table_shows_headings_under_their_group_and_the_rows_as_they_are():
    html = markup.table(ROWS, COLUMNS, "Sizes", "of things", rule="part")
    assert cells(html) == [
        ["", "size", ""], ["name", "share", "bytes", "none"],
        ["a", "25.0%", "1,234,567", "-"], [NASTY, "100.0%", "8", "-"],
    ]  # fmt: skip
    assert 'colspan="2"' in html and html.count('class="rule"') == 1 and html.count('scope="row"') == 2
    ElementTree.fromstring(html)  # well formed
    grouped = cells(markup.table(ROWS, {"share": ("size", ".1%")}, "Sizes", within="part"))
    assert grouped == [["size"], ["x"], ["25.0%"], ["y"], ["100.0%"]]
    assert cells(markup.table(ROWS[:1], {"name": ("name", "")}, "One"))[0] == ["name"]  # no groups, no line of them


def test_whatever_comes_from_outside_is_text():
    made = [
        markup.table(ROWS, COLUMNS, NASTY, NASTY), markup.paragraph(NASTY), markup.terms({NASTY: NASTY}),
        markup.bullets([NASTY]), markup.commands([NASTY]), markup.figure(drawn(), "f", NASTY, NASTY),
    ]  # fmt: skip
    for html in made:
        assert "<script" not in html and NASTY not in html and "alert(1)" in html and "$title é😀" in html
        ElementTree.fromstring(html)
    page = markup.whole_page(NASTY, "", [("a", NASTY, "")])
    assert "<script" not in page and page.count("alert(1)") == 4  # title, h1, contents, h2


def test_two_figures_on_a_page_share_no_id_and_refer_to_their_own():
    page = markup.figure(drawn(), "one", "t", "c") + markup.figure(drawn(), "two", "t", "c")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) > 40 and len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', page))
    assert {name.partition("-")[0] for name in used} == {"one", "two"} and used <= set(ids)


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "page.html"
    markup.write_page(file, "é😀\n")
    assert file.read_bytes() == "é😀\n".encode()
    with pytest.raises(MinillmError, match="cannot be written"):
        markup.write_page(tmp_path / "no such folder" / "page.html", "new")
    markup.write_page(file, "\ud800")  # half a character, as a folder's name may hold one
    assert file.read_bytes() == b"\\ud800" and list(tmp_path.iterdir()) == [file]


def test_another_ending_and_a_missing_matplotlib_are_said_in_a_sentence(monkeypatch):
    markup.check_page("report.html")
    with pytest.raises(MinillmError, match="model.safetensors: the name ends in .safetensors, expected .html"):
        markup.check_page("model.safetensors")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MinillmError, match="figures need matplotlib: pip install"):
        markup.check_page("report.html")


def test_style_and_a_template_for_every_section_come_with_the_package():
    names = {path.stem for path in (markup.HERE / "templates").glob("*.html")}
    sections = set("model protocol distributions natural costs predictors patterns buffer words".split())
    assert names == sections | {"page", "weights"}
    page = markup.whole_page("t", "", [])
    assert (markup.HERE / "style.css").read_text(encoding="utf-8") in page and page.endswith("</html>\n")
    assert not markup.template("model").template.endswith("\n")
