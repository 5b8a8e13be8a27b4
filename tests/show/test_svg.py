"""SVG for a page: a title and a description, ids of its own, nothing that needs another file."""

import re
from xml.etree import ElementTree

import numpy as np

from minillm.show import canvas
from minillm.show.results_distributions import natural_by_layer
from minillm.show.svg import clean, matplotlib_svg, svg


def drawn():
    return natural_by_layer({"m": [{"layer": i, "mid_zeros": i / 4} for i in range(3)]}, "mid_zeros")


def test_a_figure_has_title_and_description_and_is_self_contained():
    ax = drawn()
    made = svg(ax, "f", "Zeros")
    tree = ElementTree.fromstring(made)
    words = {element.get("id"): element.text for element in tree if element.tag in ("title", "desc")}
    assert tree.get("role") == "img" and tree.get("aria-labelledby").split() == list(words)
    assert list(words.values()) == ["Zeros", canvas.alt_text(ax)] and canvas.alt_text(ax)
    assert "http" not in made and "<style" not in made and "<!--" not in made and "metadata" not in made
    assert svg(drawn(), "f", "Zeros") == made


def shapes(element):
    """(name of the element, its drawing instructions) of everything that is drawn."""
    keys = ("d", "x", "y", "transform", "style")
    kinds = ("path", "use", "rect", "image", "g")
    tags = [(e.tag.rpartition("}")[2], e) for e in element.iter()]
    return [(tag, [re.sub(r"#[^)]*", "#", e.get(key, "")) for key in keys]) for tag, e in tags if tag in kinds]


def test_everything_that_matplotlib_draws_is_drawn():
    ax = drawn()
    ax.plot([0, 1], [0, 50], marker="o")
    theirs, ours = matplotlib_svg(ax), ElementTree.fromstring(svg(ax, "f", "t"))
    assert shapes(ours) == shapes(theirs) and len(shapes(ours)) > 50
    assert ours.get("viewBox") == theirs.get("viewBox")
    assert f"--inches: {canvas.SIZE[0]:g};" in ours.get("style")


def test_every_reference_leads_to_an_id_of_the_same_figure():
    ax = drawn()
    ax.imshow(np.eye(3))  # an image and a clip path
    page = svg(ax, "one", "t")
    ids = re.findall(r'\bid="([^"]*)"', page)
    used = re.findall(r'(?:href="#|url\(#)([^")]*)', page)
    assert used and set(used) <= set(ids) and len(ids) == len(set(ids))
    assert all(name.startswith("one-") for name in ids) and "data:image/png" in page


def test_an_image_keeps_its_data_and_what_is_useless_is_left_out():
    source = """<g xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" id="a">
      <style>* {}</style><image xlink:href="data:image/png;base64,AA=="/>
      <use xlink:href="#m"/><path clip-path="url(#p)"/>
    </g>"""
    element = ElementTree.fromstring(source)
    assert clean(element, "x") and element.get("id") == "x-a"
    image, use, path = element
    assert image.get("href") == "data:image/png;base64,AA==" and use.get("href") == "#x-m"
    assert path.get("clip-path") == "url(#x-p)"
    assert not clean(ElementTree.fromstring("<metadata/>"), "x")
