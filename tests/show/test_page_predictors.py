"""The page's sections on predictors and patterns: every number is that of its row."""

import reports
from pages import check_table, shown

from minillm.show.page_predictors import PREDICTED, pattern_parts


def test_every_number_of_the_table_is_that_of_its_row():
    assert check_table(reports.page(), "Predictors", reports.study().predictors, PREDICTED) > 100


def test_rates_of_patterns_stand_beside_those_of_the_baselines():
    study = reports.study()
    [line, *_] = shown(pattern_parts(study)["rows"], "Patterns before and after an edit")
    row = study.patterns[0]
    rates = [
        f"{kind}{rate}" for rate in ("match", "recall", "iou") for kind in ("", "static_", "chance_", "unrelated_")
    ]
    assert line[1:] == [f"{row['positions']:,}", f"{row['density']:.3f}", *(f"{row[key]:.3f}" for key in rates)]
