"""Displays: a figure becomes an image that carries its alt text; a figure without alt text is refused."""

import base64
import html
import io
import re

import pytest

from minillm.errors import MinillmError
from minillm.show import canvas
from minillm.show.display import figure_html, figure_png, show, under_ipython


def figure():
    ax = canvas.new_axes()[0]
    ax.plot([1, 2], [3, 4])
    ax.set_label('A line from "3" to 4.')
    return ax


def test_a_figure_becomes_a_picture_that_carries_its_words():
    from PIL import Image

    tag = figure_html(figure())
    assert html.unescape(re.search(r'alt="([^"]*)"', tag)[1]) == 'A line from "3" to 4.'
    data = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]*)"', tag)[1])
    picture = Image.open(io.BytesIO(data))
    assert picture.text["Description"] == 'A line from "3" to 4.' and picture.width == 750
    assert data == figure_png(figure().figure)  # of an Axes or of its figure, and always the same bytes


def test_a_figure_without_words_is_refused():
    with pytest.raises(MinillmError, match="set_label"):
        show(canvas.new_axes()[0])


def test_without_ipython_the_alt_text_is_printed(capsys):
    assert not under_ipython()
    show(figure())
    assert capsys.readouterr().out == '[figure: A line from "3" to 4.]\n'
