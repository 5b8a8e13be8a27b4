"""The report: one page that asks for nothing, shows the rows, and can be repeated by the commands on it."""

import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import tiny
from pages import cells

from minillm.cli import main as cli
from minillm.prefetch.clock import whole_token
from minillm.show import page
from minillm.sparsity import calibrate as calibrate_module
from minillm.study import summary as report
from minillm.study.score import score_cut
from minillm.transformer.evaluation import perplexity

TRAINING = [f"{story} And then he saw {i} red balls." for i in range(3) for story in tiny.STORIES]
TEST = [f"{story} The sea." for story in tiny.STORIES]
PROMPT = "A <i>é😀"
VOID = {"meta", "link", "br", "hr", "img", "input"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("report") / "model", hidden_size=16, intermediate_size=24)


@pytest.fixture(scope="module")
def model(folder):
    return tiny.Llama.from_folder(folder)


@pytest.fixture(scope="module")
def study(model, folder):
    options = {"model": str(folder), "text": "my text.txt", "tokens": 300, "prompt": PROMPT}
    return report.measure(model, TRAINING, TEST, options, tokens=300, prompt=PROMPT)


@pytest.fixture(scope="module")
def html(study):
    return page.page_of(replace(study, name="<b>&model</b>", headline="<b>&model</b>: llama"))


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


@pytest.fixture(scope="module")
def elements(html):
    parsed = Elements(html)
    assert not parsed.open
    return parsed.found


def test_the_page_asks_nothing_of_anybody(html, elements):
    assert not re.search(r"https?:|//[a-z]|@import|javascript:", html)
    assert not {tag for tag, _ in elements} & {"script", "img", "iframe", "object", "embed", "base", "form", "video"}
    for tag, attributes in elements:
        assert not [name for name in attributes if name == "src" or name.startswith("on")], (tag, attributes)
        for name in {"href", "xlink:href"} & set(attributes):
            assert attributes[name].startswith("#") or (tag, attributes[name]) == ("link", "data:,")
    assert set(re.findall(r"url\((.)", html)) == {"#"}


def test_every_id_is_there_once_and_every_reference_leads_to_one(html, elements):
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    for _, attributes in elements:
        wanted |= set(attributes.get("aria-labelledby", "").split())
    assert wanted <= set(ids) and len(wanted) > 100


def test_every_figure_has_words_for_who_cannot_see_it_and_a_caption_with_its_definition(html):
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


def shown(html, title):
    """The body rows of the table of that title, as cells."""
    [found] = [t for t in re.findall(r'<div class="table">.*?</table>', html, re.S) if f"<b>{title}.</b>" in t]
    return [line for line in cells(re.search(r"<tbody>.*</tbody>", found, re.S)[0]) if len(line) > 1]


def number(text):
    value = float(text.rstrip("%").replace(",", ""))
    decimals = len(text.rstrip("%").partition(".")[2])
    percent = text.endswith("%")
    return (value / 100, 0.5001 * 10.0 ** -(decimals + 2)) if percent else (value, 0.5001 * 10.0**-decimals)


def test_every_number_of_a_table_is_that_of_its_row(html, study):
    costs = {"Cost at equal neuron sparsity": "neuron", "Cost at equal weight reads": "reads"}
    costs["Cost of the paper&#x27;s rule"] = "tensor"
    tables = {title: (study.cuts[by], page.COST_COLUMNS) for title, by in costs.items()}
    for title in list(costs)[:2]:
        tables[f"{title}: each policy against mid"] = study.compared[costs[title]], page.AGAINST
    tables["Predictors"] = study.predictors, page.PREDICTED
    tables["What the buffer is worth, by how the neurons are known"] = study.ways, page.BUFFERED
    counted = 0
    for title, (rows, columns) in tables.items():
        lines = shown(html, title)
        assert len(lines) == len(rows) > 3, title
        for line, row in zip(lines, rows, strict=True):
            for cell, (key, form) in zip(line, columns.values(), strict=True):
                assert key in row, (title, key)
                if cell == "-":
                    assert row[key] is None or row[key] == "-"
                elif form == "":
                    assert cell == row[key]
                else:
                    value, slack = number(cell)
                    assert abs(value - row[key]) <= slack, (title, key, cell, row[key])
                    counted += 1
    assert counted > 1000
    keys = [key for key, _ in page.COST_COLUMNS.values()]
    assert list(page.COST_COLUMNS)[keys.index("perplexity_low")] == "perplexity/low"  # what belongs to what
    assert list(page.COST_COLUMNS)[keys.index("read_exact")] == "weights read per token/all"
    lines = shown(html, "Magnitudes of the activations")
    assert len(lines) == 2 and all("-" not in line for line in lines)
    middles = {(row["step"], row["layer"]): row["median"] for row in study.activations}
    assert [float(line[1]) for line in lines] == [round(middles["gate_pre", layer], 3) for layer in (0, 1)]


def test_the_rows_are_those_of_the_chapters(model, study):
    dense = perplexity(model, TEST)
    assert study.dense["perplexity"] == dense.perplexity and study.dense["tokens"] == dense.tokens
    row = next(row for row in study.cuts["neuron"] if (row["policy"], row["target"]) == ("mid", 0.5))
    known = TRAINING[: study.texts[1]["documents"]]
    again = score_cut(model, TEST, calibrate_module.calibrate(model, known, "mid", 0.5, by="neuron"), dense)
    assert row["perplexity"] == again["perplexity"]
    assert row["perplexity_low"] <= row["perplexity"] <= row["perplexity_high"]
    assert {row["predictor"] for row in study.predictors} >= {"oracle", "chance", "static", "previous-token"}
    assert [row["keeper"] for row in study.keepers[:6]] == ["lru", "lfu", "window-4", "hot", "random", "belady"]
    dropped = {row["perplexity"] for row in study.ways if row["misses"] == "drop"}
    assert len(dropped) > 1 and study.matters  # what is dropped depends on the capacity


def test_nothing_that_is_scored_was_calibrated_on(study, recwarn):
    assert {row["text"] for row in study.texts} == {"scored", "calibration"}
    assert not [w for w in recwarn if "calibrated on" in str(w.message)]
    tokens = {row["part"]: row["tokens"] for row in study.texts}
    assert tokens["buffer"] <= tokens["patterns"] <= tokens["predictors"] <= study.dense["tokens"]


def test_the_limit_is_amdahls():
    rows = report.amdahl_rows(0.75, (0.5, 0.0))
    assert [row["token_read"] for row in rows] == [0.625, 0.25] and [row["faster"] for row in rows] == [1.6, 4.0]
    assert rows[0]["faster"] == whole_token(2, 0.75)


def test_the_timelines_are_of_one_token_with_and_without_guesses(study):
    early, late = (set(bar.kind for bar in bars) for bars in reversed(study.timelines.values()))
    assert "prefetch" in early and "prefetch" not in late and "ffn" in early & late
    for bars in study.timelines.values():
        assert len({bar.token for bar in bars}) == 1


def test_names_and_texts_are_escaped(html):
    assert "<b>&model" not in html and "&lt;b&gt;&amp;model&lt;/b&gt;" in html
    assert "A &lt;i&gt;é😀" in html and "<i>" not in html


def test_every_command_on_the_page_parses_and_names_model_and_text(html, folder, capsys):
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
        assert arguments.model in (str(folder), [str(folder)]), line
        if words[0] in ("sweep", "predict", "patterns", "report"):
            assert arguments.text == "my text.txt", line
    assert cli.parser().parse_args(shlex.split(lines[-1])[1:]).tokens == 300


def test_the_command_writes_the_page_and_its_rows_even_of_a_single_document(folder, tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "page.html"
    text.write_text("\n".join(TRAINING + TEST), encoding="utf-8")
    assert cli.main(["report", "-m", str(folder), "--text", str(text), "--tokens", "60", "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(out) and found["cuts"]["neuron"][1]["policy"] == "dhar" and found["timelines"]
    html = out.read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>") and html.rstrip().endswith("</html>") and str(text) in html
    assert found["compared"] == {} and "no intervals" in html
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["page.html", "text.txt"]
    assert cli.main(["report", "-m", str(folder), "-o", str(tmp_path / "page.txt")]) == 1
    assert "expected .html" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_call_gives_the_same_page(model, study, folder):
    again = report.measure(model, TRAINING, TEST, study.options, tokens=300, prompt=PROMPT)
    assert page.page_of(again) == page.page_of(study)


def test_the_command_and_the_chapter_have_the_same_defaults():
    given = cli.parser().parse_args(["report", "-o", "page.html"])
    assert (given.tokens, given.prompt) == (report.TOKENS, report.PROMPT)
