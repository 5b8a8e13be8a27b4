"""What every figure must keep, for the tests of the modules that draw: units, looks, no text on top of another."""

import itertools

from minillm.show.canvas import alt_text

WORDS = ["", "Once", " upon", " a", " time", " internationalization", "\n", " ", "$", " 猫", "\t", "�"]


def panels(figure):
    """All Axes of a figure, insets and colour bars included."""
    return [panel for ax in figure.axes for panel in (ax, *ax.child_axes)]


def written(figure):
    """Every text that can be seen once the figure is laid out."""
    figure.draw_without_rendering()
    found = []
    for ax in panels(figure):
        found += [ax.title, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            found += [axis.label]
            found += [side for t in ticks if low <= t.get_loc() <= high for side in (t.label1, t.label2)]
        found += ax.get_legend().get_texts() if ax.get_legend() else []
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def drawn_texts(figure):
    """(text, its box) of everything written in a figure."""
    return [(text.get_text(), text.get_window_extent()) for text in written(figure)]


def overlapping(texts):
    """The pairs of texts of which one lies on the other."""
    pairs = itertools.combinations(texts, 2)
    return [(a, b) for (a, box), (b, other) in pairs if box.padded(-1).overlaps(other.padded(-1))]


def check_texts(figure):
    """No text lies on another, leaves the figure or is smaller than 6.5 points."""
    for text in written(figure):
        assert text.get_fontsize() >= 6.5, text.get_text()
    texts = drawn_texts(figure)
    assert not overlapping(texts)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in texts:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text


def check_labels(figure, units, without=()):
    """The label of every axis that is drawn ends with one of the units, or is one of those without a unit."""
    for ax in figure.axes:
        colour_bar = ax.get_label() == "<colorbar>"
        for label in (ax.get_xlabel(), ax.get_ylabel()) if ax.axison else ():
            assert label in without or label.endswith(units) or colour_bar, label


def check_looks(figure):
    """Every curve that has a name has a colour and a marker that no other has together."""
    for ax in figure.axes:
        lines = [line for line in ax.lines if not line.get_label().startswith("_") and line.get_linestyle() != ":"]
        looks = {(str(line.get_color()), line.get_marker()) for line in lines}
        assert len(looks) == len(lines) and all(line.get_marker() != "None" for line in lines)


def check_figure(figure, recwarn, units=None, without=(), titles=True):
    """Everything above; each panel has a title, every character a glyph, and the whole an alt text with figures in it.

    units, without: of ``check_labels``; None where the axes carry no labels. titles: False where a panel needs none.
    """
    check_texts(figure)
    if units is not None:
        check_labels(figure, units, without)
    check_looks(figure)
    assert not titles or all(ax.get_title() for ax in figure.axes)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    words = alt_text(figure)
    assert len(words) > 60 and words.endswith(".") and (not titles or any(c.isdigit() for c in words))


def tokens(count):
    """As many tokens, of every kind that is hard to write."""
    return [WORDS[i % len(WORDS)] for i in range(count)]
