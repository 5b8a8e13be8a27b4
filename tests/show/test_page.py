"""The page: self-contained, the same every time, with commands that can be run."""

import re
import shlex
from xml.etree import ElementTree

import pytest
import reports
from pages import Elements

from minillm.cli import main as cli
from minillm.show.page import in_short, page_of


@pytest.mark.slow
def test_the_page_is_self_contained():
    html = reports.page()
    elements = Elements(html).found
    assert not re.search(r"https?:|//[a-z]|@import|javascript:", html)
    assert not {tag for tag, _ in elements} & {"script", "img", "iframe", "object", "embed", "base", "form", "video"}
    for tag, attributes in elements:
        assert not [name for name in attributes if name == "src" or name.startswith("on")], (tag, attributes)
        for name in {"href", "xlink:href"} & set(attributes):
            assert attributes[name].startswith("#") or (tag, attributes[name]) == ("link", "data:,")
    assert set(re.findall(r"url\((.)", html)) == {"#"}


def test_every_id_is_there_once_and_every_reference_leads_to_one():
    html = reports.page()
    elements = Elements(html).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    for _, attributes in elements:
        wanted |= set(attributes.get("aria-labelledby", "").split())
    assert wanted <= set(ids) and len(wanted) > 100


def test_every_figure_has_an_alt_text_and_a_caption_with_its_definition():
    html = reports.page()
    figures = re.findall(r"<figure .*?</figure>", html, re.S)
    assert len(figures) >= 13
    for figure in map(ElementTree.fromstring, figures):
        svg, caption = figure.find(".//svg"), " ".join(figure.find("figcaption").itertext())
        assert svg.get("role") == "img" and len(svg.find("title").text) > 5 and len(svg.find("desc").text) > 30
        assert "Definition" in caption or "Nothing is cut" in caption, caption
        if "Definition" in caption:  # the fields of a SparsitySpec
            fields = ("keep", "target", "achieved", "every token", "all layers", "threshold per layer")
            assert all(field in caption for field in fields), caption
    words = [ElementTree.fromstring(figure).find(".//desc").text for figure in figures]
    assert len(set(words)) == len(words)


def test_names_and_texts_are_escaped():
    html = reports.page()
    assert "<b>&model" not in html and "&lt;b&gt;&amp;model&lt;/b&gt;" in html
    assert "A &lt;i&gt;é😀" in html and "<i>" not in html


def test_every_command_on_the_page_parses_and_names_model_and_text(capsys):
    html = reports.page()
    reader = Elements(html)  # unescapes
    lines = []
    reader.handle_data = lambda data: lines.append(data) if data.startswith("minillm ") else None
    reader.reset()
    reader.feed(html)
    assert {line.split()[1] for line in lines} >= set("inspect sweep predict patterns prefetch generate report".split())
    for line in lines:
        words = shlex.split(line)[1:]
        try:
            arguments = cli.parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")
        assert arguments.model in (str(reports.folder()), [str(reports.folder())]), line
        if words[0] in ("sweep", "predict", "patterns", "report"):
            assert arguments.text == "my text.txt", line
    assert cli.parser().parse_args(shlex.split(lines[-1])[1:]).tokens == 300


@pytest.mark.slow
def test_the_same_call_gives_the_same_page():
    again = reports.measured(reports.study().options)
    assert page_of(again) == page_of(reports.study())


def test_every_sentence_of_the_summary_leads_to_its_section():
    html, sentences = reports.page(), in_short(reports.study())
    assert [name for name, _ in sentences] == ["model", "protocol", "costs", "costs", "predictors", "buffer"]
    assert all(f'<section id="{name}"' in html for name, _ in sentences)
    assert f"perplexity {reports.study().dense['perplexity']:.3f}" in dict(sentences)["protocol"]
