"""The page's section on costs: every number is that of its row."""

from dataclasses import replace

import reports
from pages import check_table, shown

from minillm.show.page_costs import AGAINST, COST_COLUMNS, cost_parts, weights_part
from minillm.study.costs import WEIGHT_TARGETS, method_rows
from minillm.transformer.evaluation import perplexity


def test_every_number_of_a_table_is_that_of_its_row():
    html, study = reports.page(), reports.study()
    titles = {"neuron": "Cost at equal neuron sparsity", "reads": "Cost at equal weight reads"}
    counted = 0
    for by, title in titles.items():
        counted += check_table(html, title, study.cuts[by], COST_COLUMNS)
        counted += check_table(html, f"{title}: each policy against mid", study.compared[by], AGAINST)
    counted += check_table(html, "Cost of the paper&#x27;s rule", study.cuts["tensor"], COST_COLUMNS)
    assert counted > 600
    assert COST_COLUMNS["perplexity_low"][0] == "perplexity/low"  # what belongs to what
    assert COST_COLUMNS["read_exact"][0] == "weights read per token/all"


def test_a_study_of_one_document_has_no_intervals_and_no_verdicts():
    parts = cost_parts(replace(reports.study(), compared={}))
    assert "no intervals" in parts["neuron"] and "against mid" not in parts["neuron"]
    assert len(shown(parts["tensor"], "Cost of the paper&#x27;s rule")) == len(reports.study().cuts["tensor"])


def test_methods_that_remove_weights_have_a_table_of_their_own():
    model, study = reports.model(), reports.study()
    assert weights_part(study) == "" and "removed weights" not in reports.page()
    dense = perplexity(model, reports.TEST)
    rows = method_rows(model, reports.TRAINING, reports.TEST, dense, ("magnitude", "wanda"), lambda _: None)["weights"]
    part = cost_parts(replace(study, cuts=study.cuts | {"weights": rows}))["weights"]
    assert len(rows) == 1 + 2 * len(WEIGHT_TARGETS) and "At equal shares of removed weights" in part
    assert [line[0] for line in shown(part, "Cost of removed weights")] == [row["policy"] for row in rows]
    assert "30%" in part and f"{rows[1]['perplexity']:.3f}" in part
    assert "|W_ij| ||x_j||, the smallest of each row go; weights removed, target 0.500, achieved" in part
