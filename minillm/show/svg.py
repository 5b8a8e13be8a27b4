"""A figure as SVG for the inside of an HTML page, with a title and a description.

matplotlib writes a whole file: names of XML's dialects, metadata, a style for everything, and the same ids in every
figure. A page needs the drawing alone, with ids of its own:

    <svg xmlns="..." xmlns:xlink="..." viewBox="0 0 360 259" width=... height=...>     matplotlib's file
      <metadata>, <defs><style>, <g id="figure_1"> ... <use xlink:href="#m3f">

    <svg role="img" aria-labelledby="NAME-title NAME-words" viewBox="0 0 360 259" style="...">     what is made of it
      <title>, <desc>, <defs>, <g id="NAME-figure_1"> ... <use href="#NAME-m3f">

The names of the elements lose their namespace here: inside HTML an <svg> needs none. So no prefix has to be registered
with ElementTree, which would be for the whole process.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from .canvas import alt_text, figure_of, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

XLINK = "{http://www.w3.org/1999/xlink}"
USELESS = ("metadata", "style", "title")  # elements of matplotlib's file that a page does not need
LINE_STYLE = "stroke-linejoin: round; stroke-linecap: butt"  # what matplotlib's <style> says


def svg(figure: Axes, name: str, title: str) -> str:
    """The figure of an Axes as an <svg> element; its alt text is the description.

    name: of this figure alone on its page. It is put before every id: matplotlib uses the same ids in all figures.
    """
    drawing = matplotlib_svg(figure)
    wide, _ = figure_of(figure).get_size_inches()
    root = Element("svg", {"role": "img", "aria-labelledby": f"{name}-title {name}-words"})
    root.set("viewBox", drawing.get("viewBox", ""))
    root.set("style", f"--inches: {wide:g}; {LINE_STYLE}")
    SubElement(root, "title", id=f"{name}-title").text = title
    SubElement(root, "desc", id=f"{name}-words").text = alt_text(figure)
    for part in drawing:
        if clean(part, name):
            root.append(part)
    for element in root.iter():
        element.tail = "\n"  # a line for each element: a page's source stays legible
    root.text, root.tail = "\n", ""
    return ElementTree.tostring(root, encoding="unicode")


def matplotlib_svg(figure: Axes) -> Element:
    """The root element of the SVG file that matplotlib writes for the figure of an Axes, without its comments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        save_figure(figure, path)
        return ElementTree.parse(path).getroot()


def clean(element: Element, name: str) -> bool:
    """Make an element and all below it fit for a page, in place; False for an element that a page does not need."""
    element.tag = element.tag.rpartition("}")[2]  # "{http://www.w3.org/2000/svg}path"
    if element.tag in USELESS:
        return False
    if f"{XLINK}href" in element.attrib:
        element.set("href", element.attrib.pop(f"{XLINK}href"))
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == "href" and value.startswith("#"):  # an image's href is its data
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
    if not (element.text or "").strip():
        element.text = "\n" if len(element) else None
    for child in list(element):
        if not clean(child, name):
            element.remove(child)
    return True
