"""What notebooks show: logic without widgets, widgets without a browser, and both in a real kernel."""

import base64
import html
import io
import re
import subprocess
import sys

import ipywidgets
import nbformat
import numpy as np
import pytest
import tiny
from nbclient import NotebookClient

import minillm
from minillm.course import notebook
from minillm.errors import MinillmError
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.show import canvas
from minillm.transformer.ops import softmax


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return minillm.load(tiny.folder(tmp_path_factory.mktemp("tiny")), dtype="float64")


def figure():
    ax = canvas.new_axes()[0]
    ax.plot([1, 2], [3, 4])
    ax.set_label('A line from "3" to 4.')
    return ax


# ---- figures and sources ---------------------------------------------------------------------------------------------


def test_a_figure_becomes_a_picture_that_carries_its_words():
    from PIL import Image

    tag = notebook.figure_html(figure())
    assert html.unescape(re.search(r'alt="([^"]*)"', tag)[1]) == 'A line from "3" to 4.'
    data = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]*)"', tag)[1])
    picture = Image.open(io.BytesIO(data))
    assert picture.text["Description"] == 'A line from "3" to 4.' and picture.width == 750
    assert data == notebook.figure_png(figure().figure)  # of an Axes or of its figure, and always the same bytes


def test_a_figure_without_words_is_refused():
    with pytest.raises(MinillmError, match="set_label"):
        notebook.show(canvas.new_axes()[0])


def test_without_ipython_words_are_printed_and_nothing_of_it_is_imported():
    code = """if True:
        import sys
        from minillm.course import notebook
        from minillm.show import canvas
        from minillm.prefetch.buffer import PrefetchBuffer
        from minillm.transformer.ops import silu, softmax
        ax = canvas.new_axes()[0]
        ax.set_label("Nothing.")
        notebook.show(ax)
        notebook.show_source(silu, softmax)
        notebook.buffer_stepper(PrefetchBuffer(1, 4, 2))
        print([name for name in ("IPython", "ipywidgets") if name in sys.modules])
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = out.splitlines()
    assert lines[0] == "[figure: Nothing.]" and lines[-1] == "[]"
    assert re.fullmatch(r"\[source of silu: minillm/transformer/ops.py, line \d+\]", lines[1])
    assert "nothing has happened yet" in lines


# ---- the threshold ---------------------------------------------------------------------------------------------------


def test_a_threshold_of_zero_cuts_next_to_nothing_and_changes_nothing(model):
    view = notebook.threshold_view(model, "A cat sat.", 0.0, layer=1, new_tokens=5)
    assert view.cut == 0 and view.mask.all() and not view.errors.any()
    assert view.dense == view.text
    assert view.mask.shape == (len(view.tokens), model.config.intermediate_size)
    assert len(view.errors) == len(model.layers)


def test_a_threshold_above_everything_cuts_all_and_loses_the_whole_output(model):
    view = notebook.threshold_view(model, "A cat sat.", 1e9, new_tokens=5)
    assert view.cut == 1 and not view.mask.any()
    assert np.array_equal(view.errors, np.ones(len(model.layers)))


def test_the_view_is_what_the_sparse_ffn_says(model):
    ids, t = model.tokenizer.encode("A cat sat on the mat."), 0.02
    with minillm.Trace(keep="blocks.1.mlp.*") as trace:
        model.hidden(ids, tap=trace)
    view = notebook.threshold_view(model, "A cat sat on the mat.", t, layer=1, new_tokens=3)
    mid = trace["blocks.1.mlp.mid"]
    assert np.array_equal(view.mask, np.abs(mid) > t) and 0 < view.mask.mean() < 1
    lost = np.where(view.mask, 0, mid) @ model.layers[1].down_proj.T
    assert np.isclose(view.errors[1], np.linalg.norm(lost) / np.linalg.norm(trace["blocks.1.mlp.out"]))
    assert f"threshold {t}" in str(view) and f"{100 * view.cut:.0f} % of all neurons cut" in str(view)


@pytest.mark.parametrize(("threshold", "layer"), [(-1, 0), (float("nan"), 0), (0.1, 99), (0.1, -1)])
def test_a_threshold_or_layer_that_is_none_is_refused(model, threshold, layer):
    with pytest.raises(MinillmError, match="expected a number >= 0 and a layer from 0 to"):
        notebook.threshold_view(model, "A cat sat.", threshold, layer)


def test_the_slider_redraws_when_it_is_moved_and_goes_from_little_to_nearly_everything(model):
    low, high = notebook.threshold_range(model, "A cat sat.")
    cuts = [notebook.threshold_view(model, "A cat sat.", t, new_tokens=1).cut for t in (low, high)]
    assert cuts[0] < 0.2 and cuts[1] > 0.97
    box = notebook.slider(ipywidgets, lambda value: f"<p>{value:.2f}</p>", 0.5, 8.0)
    value, field = box.children
    assert np.allclose((10**value.min, value.value, 10**value.max), (0.5, 2, 8)) and field.value == "<p>2.00</p>"
    value.value = 3.2
    assert field.value == "<p>3.20</p>"


def test_a_model_with_exact_zeros_has_a_slider_too():
    low, high = notebook.threshold_range(minillm.load("default-relu"), "A cat sat.")
    assert 0 < low < high


# ---- the buffer ------------------------------------------------------------------------------------------------------


def buffer(tokens: int = 3) -> PrefetchBuffer:
    trace = np.zeros((tokens, 2, 6), bool)
    for t in range(tokens):
        trace[t, :, [t, t + 1]] = True
    found = PrefetchBuffer(2, 6, 2)
    found.follow(trace, np.roll(trace, 1, axis=2))
    return found


def test_the_text_of_a_buffer_is_its_last_events_and_its_contents():
    b = buffer()
    assert "nothing has happened yet" in notebook.buffer_text(b) and "0 of 2" in notebook.buffer_text(b)
    for _ in range(5):
        b.step()
    whole, two = notebook.buffer_text(b).splitlines(), notebook.buffer_text(b, last=2).splitlines()
    assert len(whole) == len(two) + 3 == 1 + 5 + 1 + 3
    assert [line.split()[0] for line in whole[1:6]] == ["0", "1", "2", "3", "4"]
    wide = PrefetchBuffer(1, 300, 200)
    wide.request(0, np.ones(300, bool))
    assert max(map(len, notebook.buffer_text(wide).splitlines())) < 100


def test_the_stepper_goes_on_by_one_or_ten_and_stops_at_the_end():
    b, twin = buffer(), buffer()
    box = notebook.stepper(ipywidgets, b)
    (one, ten), field = box.children[0].children, box.children[1]
    one.click()
    twin.step()
    assert b.events == twin.events and html.unescape(field.value) == f"<pre>{notebook.buffer_text(twin)}</pre>"
    ten.click()
    assert len(b.events) == 11 and not ten.disabled
    for _ in range(10):
        ten.click()
    twin.run()
    assert b.events == twin.events and one.disabled and ten.disabled


# ---- in a kernel -----------------------------------------------------------------------------------------------------

CELLS = (
    "import minillm, numpy as np\n"
    "from minillm.course import notebook\n"
    "from minillm.show import canvas\n"
    "from minillm.prefetch.buffer import PrefetchBuffer\n"
    "from minillm.transformer.ops import softmax\n"
    "ax = canvas.new_axes()[0]; ax.set_label('Seen.')\n"
    "notebook.show(ax)",
    "notebook.show_source(softmax)",
    "notebook.threshold_slider(minillm.load('default'), 'Once upon a time', new_tokens=4)",
    "b = PrefetchBuffer(2, 6, 2)\n"
    "b.follow(np.ones((9, 2, 6), bool))\n"
    "notebook.buffer_stepper(b, events=3)",
    # What a reader's hand does, from inside: the slider to its end, the button once.
    "import gc, sys\n"
    "widgets = sys.modules['ipywidgets']\n"
    "if widgets:\n"
    "    boxes = [o for o in gc.get_objects() if type(o) is widgets.VBox]\n"
    "    (moved,) = (box for box in boxes if type(box.children[0]) is widgets.FloatLogSlider)\n"
    "    (pressed,) = (box for box in boxes if type(box.children[0]) is widgets.HBox)\n"
    "    before = moved.children[1].value\n"
    "    moved.children[0].value = 10 ** moved.children[0].max\n"
    "    assert moved.children[1].value != before and '<img' in moved.children[1].value\n"
    "    pressed.children[0].children[0].click()\n"
    "    assert len(b.events) == 4 and pressed.children[1].value.startswith('<pre>event')",
)  # fmt: skip


@pytest.mark.parametrize("with_widgets", [True, False])
def test_in_a_kernel_all_is_displayed_with_and_without_widgets_and_nothing_hangs(with_widgets, tmp_path):
    first = "" if with_widgets else "import sys\nsys.modules['ipywidgets'] = None\n"
    cells = [nbformat.v4.new_code_cell(code) for code in (first + CELLS[0], *CELLS[1:])]
    made = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(made, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown, source, slider, stepper, moved = ([o.data for o in cell.outputs] for cell in made.cells)
    assert 'alt="Seen."' in shown[0]["text/html"] and shown[0]["text/plain"] == "[figure: Seen.]"
    assert "```python\ndef softmax(" in source[0]["text/markdown"] and softmax.__doc__[:30] in source[0]["text/plain"]
    assert "<img" in slider[0]["text/html"] and "neurons cut" in slider[0]["text/html"]
    assert "<pre>event" in stepper[0]["text/html"]
    assert not moved
    for data in (slider[0], stepper[0]):
        assert ("application/vnd.jupyter.widget-view+json" in data) == with_widgets
