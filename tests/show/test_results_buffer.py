"""Figures of the buffer: curves and bars are the rows, the rivals are always drawn."""

import numpy as np
import pytest
from figures import check_figure

from minillm.errors import MinillmError
from minillm.prefetch.clock import Interval
from minillm.show import canvas
from minillm.show.canvas import figure_of
from minillm.show.results_buffer import bytes_by_capacity, gantt, hit_rate_by_capacity


def buffer_rows(names=("lru", "lfu", "window-4", "random", "belady"), predictors=("policy's own mask",)):
    """Rows as replay and prefetch_rows give them, in no order."""
    rows = []
    for p, predictor in enumerate(predictors):
        for n, name in enumerate(names):
            for share in (1.0, 0.0, 0.1, 0.5):
                hits, rivals = share ** (1 - n / 9), {"lru": share**0.9, "belady": share**0.5}
                rows.append({"keeper": name, "capacity_share": share, "hit_rate": hits, "predictor": predictor})
                rows[-1] |= {"bytes_per_token": (1.2 + p) * (1 - hits) * 1e6, "dense_bytes": 2.4e6} | rivals
                rows[-1] |= {f"{rival}_bytes": 1.2e6 * (1 - hit) for rival, hit in rivals.items()}
    return rows


def timeline(layers=8, tokens=2, each=1e-3):
    """Intervals of every kind."""
    found, now = [], 5.0
    for t in range(tokens):
        for i in range(layers):
            found += [Interval(t, i, "rest", now, now + each), Interval(t, i, "stall", now + each, now + 3 * each)]
            found += [Interval(t, i, "fetch", now + each, now + 2 * each)]
            found += [Interval(t, i, "prefetch", now + 2 * each, now + 3 * each)]
            found += [Interval(t, i, "ffn", now + 3 * each, now + 4 * each)]
            now += 4 * each
        found.append(Interval(t, layers, "head", now, now + each))
        now += each
    return found


def figures():
    """Every figure, at its fullest and, where it differs, at its plainest."""
    return {
        "hits": lambda: hit_rate_by_capacity(buffer_rows()),
        "hits of two predictors": lambda: hit_rate_by_capacity(buffer_rows(("lru", "hot"), ("shadow-4", "ahead-4"))),
        "fetched": lambda: bytes_by_capacity(buffer_rows()),
        "fetched, one row": lambda: bytes_by_capacity(buffer_rows(("hot",))[:1]),
        "gantt": lambda: gantt(timeline()),
        "gantt of 80 layers": lambda: gantt(timeline(80, 1, 2e-4)),
    }


FIGURES = figures()


UNITS = ("(%)", "(MB)", "(% of a layer's neurons)", "(ms)", "(ms); dotted: the next token")
NAMES = ("layer",)  # an axis that has names of things, and no unit


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_and_has_an_alt_text(name, recwarn):
    check_figure(figure_of(FIGURES[name]()), recwarn, UNITS, NAMES)


def test_hits_and_bytes_are_the_rows_and_the_rivals_are_drawn_though_no_row_is_theirs():
    rows = buffer_rows(("hot",))
    for draw, key, scale in (
        (hit_rate_by_capacity, "hit_rate", 100),
        (bytes_by_capacity, "bytes_per_token", 1e-6),
    ):
        ax = draw(rows)
        lines = {line.get_label(): line.get_xydata() for line in ax.lines}
        own = sorted([100 * row["capacity_share"], scale * row[key]] for row in rows)
        np.testing.assert_allclose(lines["hot"], own)
        rival = "belady" if key == "hit_rate" else "belady_bytes"
        np.testing.assert_allclose(lines["belady"][2], [50, scale * rows[3][rival]])
        assert set(lines) == {"hot", "lru", "belady", "capacity / N" if key == "hit_rate" else "dense, no buffer"}
    looks = [{line.get_label(): line.get_color() for line in draw(buffer_rows()).lines} for draw in
             (hit_rate_by_capacity, bytes_by_capacity)]  # fmt: skip
    assert all(looks[0][name] == looks[1][name] for name in ("lru", "lfu", "window-4", "random", "belady"))


def test_bars_of_a_timeline_lie_where_its_intervals_do():
    found = timeline(3, 2)
    bars = {
        (round(bar.get_x(), 6), round(bar.get_width(), 6), round(bar.get_y() + bar.get_height() / 2, 2))
        for bar in gantt(found).patches
    }
    lane = {True: 0.19, False: -0.19}
    expected = {
        (round(1e3 * (i.start - 5), 6), round(1e3 * (i.end - i.start), 6), round(i.layer + lane["fetch" in i.kind], 2))
        for i in found
    }
    assert bars == expected
    as_rows = gantt([interval._asdict() for interval in found])
    assert canvas.alt_text(as_rows) == canvas.alt_text(gantt(found))
    assert "4 layers and 2 tokens: 26 ms" in canvas.alt_text(as_rows) and "computing waits for 46 %" in canvas.alt_text(
        as_rows
    )
    assert [label.get_text() for label in as_rows.get_yticklabels()] == ["0", "1", "2", "head"]


@pytest.mark.parametrize(
    ("draw", "given", "said"),
    [
        (hit_rate_by_capacity, [], "there are no rows"),
        (bytes_by_capacity, [{"dense_bytes": 1}], "have no keeper, capacity_share and bytes_per_token"),
        (gantt, [], "there are no intervals"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(draw, given, said):
    with pytest.raises(MinillmError, match=said):
        draw(given)
