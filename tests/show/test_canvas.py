"""Around a figure: words in the file, files whole or not there, one sentence without matplotlib."""

import os
import struct
import sys
import zlib

import pytest
from figures import check_texts, drawn_texts, overlapping

from minillm.errors import MinillmError
from minillm.show import canvas


@canvas.drawn
def steps(heights, *, ax=None):
    """A figure as simple as can be."""
    ax = canvas.given_or_new(ax, (4.0, 3.0))
    ax.plot(heights, label="height")
    ax.set_title("Steps")
    ax.set_label(f"A line through {len(heights)} heights.")
    return ax


def test_a_figure_is_drawn_on_the_axes_that_are_given():
    left, right = canvas.new_axes(1, 2)
    assert steps([1, 3], ax=right) is right and right.lines and not left.lines
    assert len(canvas.new_axes()) == 1 and "pyplot" not in str(sorted(sys.modules.get("matplotlib").__dict__))


def test_a_figure_of_its_own_has_the_size_that_its_drawing_asks_for():
    assert steps([1, 3]).figure.get_size_inches().tolist() == [4.0, 3.0]
    wide = canvas.new_axes(2, 3, (1.0, 2.0))
    assert len(wide) == 6 and wide[0].figure.get_size_inches().tolist() == [3.0, 4.0]


def test_texts_on_each_other_outside_or_too_small_would_be_noticed():
    ax = steps([1, 3])
    check_texts(ax.figure)
    ax.set_xticks(range(9), ["a long name"] * 9)
    assert overlapping(drawn_texts(ax.figure))
    for text, at, size in (("outside", (3, 1), 9), ("small", (0.5, 2), 3)):
        ax = steps([1, 3])
        ax.text(*at, text, fontsize=size).set_in_layout(False)
        with pytest.raises(AssertionError, match=text):
            check_texts(ax.figure)


def test_every_name_has_a_look_of_its_own_and_keeps_it():
    names = [f"name {i}" for i in range(40)]
    looks = canvas.curve_styles(names)
    assert len({tuple(sorted(look.items())) for look in looks.values()}) == 40
    assert canvas.curve_styles(names[:5]) == {name: looks[name] for name in names[:5]}


def png_texts(data: bytes) -> dict[str, str]:
    """The words in a PNG's tEXt and iTXt parts."""
    found, at = {}, 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        if kind in (b"tEXt", b"iTXt"):
            key, _, text = body.partition(b"\0")
            found[key.decode()] = text.lstrip(b"\0").decode()
        at += 12 + size
    return found


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_a_file_holds_the_alt_text_and_is_the_same_every_time(tmp_path, ending):
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        ax = steps([1, 3])
        assert canvas.alt_text(ax) == canvas.alt_text(ax.figure) == "A line through 2 heights."
        ax.set_label("My own words.")
        canvas.save_figure(ax, folder / f"figure{ending}")
        files.append((folder / f"figure{ending}").read_bytes())
        assert len(list(folder.iterdir())) == 1
    assert files[0] == files[1]
    if ending == ".png":
        assert png_texts(files[0])["Description"] == "My own words."
    else:
        assert b"<dc:description>My own words.</dc:description>" in files[0]


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "figure.PNG", ".svg"])
def test_another_ending_is_refused(tmp_path, name):
    with pytest.raises(MinillmError, match=r"expected \.png or \.svg"):
        canvas.save_figure(canvas.new_axes()[0], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (lambda: canvas.check_figure(tmp_path / "a.png"), lambda: steps([1, 3])):
        with pytest.raises(MinillmError, match=r"figures need matplotlib: pip install '\.\[study\]'"):
            draw()


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX's")
@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_a_disk_that_fills_up_leaves_the_older_file(tmp_path, ending):
    import resource

    target = tmp_path / f"figure{ending}"
    target.write_text("older", encoding="utf-8")
    ax = steps([1, 3])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(MinillmError, match=rf"figure\{ending}: cannot be written \(File too large\)"):
            canvas.save_figure(ax, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text(encoding="utf-8") == "older" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(MinillmError, match="cannot be written"):
        canvas.save_figure(ax, tmp_path / "absent" / f"figure{ending}")
