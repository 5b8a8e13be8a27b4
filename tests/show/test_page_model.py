"""The page's sections on the model: numbers of the tables are those of the rows."""

import reports
from pages import shown

from minillm.show.page_model import by_layer, model_parts, natural_parts, protocol_parts


def test_rows_of_a_layer_become_one_row():
    rows = [{"layer": i, "step": step, "median": i + len(step)} for step in ("up", "mid") for i in (0, 1)]
    assert by_layer(rows, "step", ["median"]) == [
        {"layer": 0, "up median": 2, "mid median": 3},
        {"layer": 1, "up median": 3, "mid median": 4},
    ]


def test_magnitudes_of_the_activations_stand_in_the_row_of_their_layer():
    html, study = reports.page(), reports.study()
    lines = shown(html, "Magnitudes of the activations")
    assert len(lines) == 2 and all("-" not in line for line in lines)
    medians = {(row["step"], row["layer"]): row["median"] for row in study.activations}
    assert [float(line[1]) for line in lines] == [round(medians["gate_pre", layer], 3) for layer in (0, 1)]


def test_natural_zeros_are_those_of_the_rows():
    rows = reports.study().natural
    lines = shown(natural_parts(reports.study())["rows"], "Natural sparsity, as shares")
    keys = ("gate_zeros", "gate_below_1_percent", "gate_below_10_percent", "mid_zeros")
    assert lines == [[str(row["layer"]), *(f"{row[key]:.4f}" for key in keys)] for row in rows]


def test_parts_of_the_model_and_of_the_text_are_listed():
    study = reports.study()
    assert [line[0] for line in shown(model_parts(study)["tables"], "Where the weights are")] == [
        row["part"] for row in study.parts
    ]
    found = protocol_parts(study)
    assert found["perplexity"] == f"{study.dense['perplexity']:.4f}" and "my text.txt" in found["origin"]
    assert [int(line[3].replace(",", "")) for line in shown(found["read"], "What each part read")] == [
        row["tokens"] for row in study.texts
    ]
