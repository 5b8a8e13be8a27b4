"""What sections share: commands with the page's own options, definitions, costs in words."""

from dataclasses import replace

import reports

from minillm.show.page_shared import definition, joined, paid, repeat_command, scored_on, under


def test_a_command_names_the_model_and_only_the_options_that_differ_from_the_defaults():
    study = replace(reports.study(), options={"model": "a b", "text": "my text.txt", "seed": 0, "context": 64})
    assert repeat_command(study, "sweep", "--by", "reads") == (
        "minillm sweep --model 'a b' --text 'my text.txt' --context 64 --by reads"
    )
    assert repeat_command(study, "inspect", takes="") == "minillm inspect --model 'a b'"
    assert joined((0.5, "mid")) == "0.5,mid"


def test_a_cost_is_a_percentage_with_its_interval_where_there_is_one():
    dense = {"perplexity": 10.0}
    assert paid({"vs_dense": 1.25}, dense) == "+25.0 %"
    row = {"vs_dense": 0.99, "perplexity_low": 9.5, "perplexity_high": 10.4}
    assert paid(row, dense) == "-1.0 % (-5.0 to +4.0 %)"


def test_a_definition_is_the_spec_of_one_row_and_the_rules_of_the_others():
    rows = reports.study().cuts["neuron"]
    words = definition(rows)
    middle = next(row for row in rows if row["policy"] == "mid" and row["target"] == 0.5)
    assert str(middle["spec"]) in words and all(name in words for name in ("dhar", "cats", "countdown", "teal"))
    assert "other policies" not in definition(reports.study().cuts["tensor"])


def test_the_protocol_is_that_of_the_row_and_groups_are_put_before_headings():
    dense = reports.study().dense
    words = scored_on(dense)
    assert all(str(dense[key]) in words for key in ("protocol", "context", "bos", "dtype"))
    assert under("reads", {"read_gate": ("gate", ".3f")}) == {"read_gate": ("reads/gate", ".3f")}
