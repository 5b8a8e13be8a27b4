"""What notebooks show: logic without widgets, widgets without a browser, and both in a real kernel."""

import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from minillm.transformer.ops import softmax


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


@pytest.mark.slow
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
