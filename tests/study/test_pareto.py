"""The one picture: targets that read the same bytes, the best of each family, and sentences that are the numbers."""

import math

import numpy as np
import pytest
import tiny

import minillm
from minillm.study import pareto as module
from minillm.study.pareto import FAMILIES, ORDERINGS, best, findings, increase, orderings, pareto, points
from minillm.study.record import read_record
from minillm.study.sweep import SweepPoint, sweep
from minillm.study.sweep_rows import WEIGHTS, known
from minillm.study.workers import Workers
from minillm.transformer.documents import split_documents
from minillm.transformer.texts import Sample, split_text

CHANGES_WEIGHTS = {family.name for family in FAMILIES if family.weights}
ON_TOP = {family.name for family in FAMILIES if "mid" in family.name}  # of removed weights, a mask


def test_every_family_and_ordering_names_methods_that_there_are():
    for family in FAMILIES:
        for cut in family.cuts((0.5,)):
            known(cut.policy, cut.by)
    weights = {cut.policy for family in FAMILIES for cut in family.cuts((0.5,)) if cut.by == WEIGHTS}
    assert {name for ordering in ORDERINGS for name in ordering[:2]} <= weights


def test_targets_are_those_that_read_the_share():
    of = {family.name: family.cuts((0.25, 0.5, 0.95)) for family in FAMILIES}
    assert of["oracle"] == [SweepPoint("mid", "neuron", target) for target in (0.25, 0.5, 0.95)]
    wanda = [cut.target for cut in of["unstructured"] if cut.policy == "wanda"]
    assert wanda == [0.3125, 0.5625]  # 1 - p + 1/16 = R; 0.95 is out of reach
    assert {cut.target for cut in of["2:4"]} == {0.5}


# ---- rows by hand ----------------------------------------------------------------------------------------------------

DENSE = 10.0
TOKENS = [100, 100, 100]


def row(model, policy, by, target, ratio, read, spread=(1.0, 1.0, 1.0)):
    """A row whose documents cost ln(10 ratio) nats a token, in the second half of spread a little more or less."""
    nll = [100 * (math.log(DENSE) + math.log(ratio) * part) for part in spread]
    about = {"model": model, "model_sha256": model * 8, "policy": policy, "by": by, "target": target, "stored": 1.0}
    score = {"nll": sum(nll), "tokens": 300, "document_nll": nll, "document_tokens": TOKENS}
    score |= {"perplexity": math.exp(sum(nll) / 300), "read_exact": read, "read_known_mask": read}
    return about | score


def by_hand(model="a", oracle=1.01, wanda=1.4, magnitude=1.5):
    return [
        row(model, "dense", None, None, 1.0, 1.0),
        row(model, "mid", "neuron", 0.5, oracle, 0.5),
        row(model, "mid", "neuron", 0.75, 2 * oracle, 0.25),
        row(model, "shadow-2", "reads", 0.5, 1.05, 0.49),
        row(model, "shadow-3", "reads", 0.5, 1.03, 0.51),
        row(model, "teal", "reads", 0.5, 1.1, 0.5),
        row(model, "magnitude", WEIGHTS, 0.5625, magnitude, 0.5),
        row(model, "wanda", WEIGHTS, 0.5625, wanda, 0.5),
        row(model, "svd", WEIGHTS, 0.5, 9.0, 0.5),
        row(model, "magnitude-2:4", WEIGHTS, 0.5, 1.2, 0.5625),
    ]


def test_the_best_of_each_family_at_a_share_and_at_each_target():
    found = points(by_hand())
    at_half = {row["family"]: row["policy"] for row in best(found, "a" * 8, 0.5)}
    assert at_half == {
        "oracle": "mid",
        "predictor": "shadow-3",
        "inputs": "teal",
        "unstructured": "wanda",
        "SVD": "svd",
    }  # fmt: skip  (2:4 reads more)
    page = [(row["family"], row["target"]) for row in best(found, "a" * 8)]
    assert page.count(("oracle", 0.75)) == 1 and ("2:4", 0.5) in page and len(page) == 7
    assert {row["family"] for row in found if row["weights"]} == {"unstructured", "2:4", "SVD"} <= CHANGES_WEIGHTS
    wanda = next(row for row in found if row["policy"] == "wanda")
    assert wanda["over_dense"] == pytest.approx(math.log(1.4)) == wanda["low"] == wanda["high"]


def test_the_sentences_are_the_numbers():
    one, two, both = findings(points([*by_hand(), *by_hand("b", 1.036, 3.6, 4)]))
    assert "oracle costs +1.0 %" in one and "weights, wanda, +40.0 %" in one and "+38.6 %" in one  # 1.4 / 1.01
    assert "shadow-3 costs +3.0 %" in one and "teal costs +10.0 %" in one
    assert "b: at 50 %" in two and "+260 %" in two
    assert both == (
        "At 50 % of the FFNs' bytes per token the oracle costs +1.0 to +3.6 %, the best method that changes weights "
        "+40.0 to +260 %"
    )
    assert findings(points(by_hand()), 0.25) == []  # nothing of the weights reads so little
    assert [increase(math.log(ratio)) for ratio in (1.5, 0.9, 16.6)] == ["+50.0", "-10.0", "+1560"]


def test_orderings_are_counted_and_an_interval_around_0_decides_nothing(monkeypatch):
    monkeypatch.setattr(module, "ORDERINGS", (("wanda", "magnitude", "p"), ("svd-whitened", "svd", "q")))
    rows = [*by_hand(), *by_hand("b", wanda=1.6)]
    rows += [row("c", "wanda", WEIGHTS, 0.5, 1.2, 0.5, (-5, 5, 3)), row("c", "magnitude", WEIGHTS, 0.5, 1.2, 0.5)]
    (found,) = orderings(rows)
    assert (found["holds"], found["fails"], found["undecided"]) == (1, 1, 1)
    assert (found["lowest"], found["highest"]) == (pytest.approx(1.4 / 1.5), pytest.approx(1.6 / 1.5))


def test_one_document_has_costs_and_no_intervals():
    rows = [r | {"document_nll": [r["nll"]], "document_tokens": [300]} for r in by_hand()]
    found = points(rows)
    assert {row["low"] for row in found} == {None} and "(" not in findings(found)[0]
    assert orderings(rows)[0]["undecided"] == 1


# ---- a page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = {"hidden_size": 16, "intermediate_size": 64}
    return tiny.loaded(tmp_path_factory.mktemp("pareto") / "m", "float32", **shape)


TEXTS = split_text([f"{story} {number}" for number in range(6) for story in tiny.STORIES])


@pytest.fixture(scope="module")
def rows(model):
    return pareto([model], TEXTS[0], Sample(TEXTS[1], "documents", 64), (0.5,))


def test_families_read_about_equally_many_bytes(model, rows):
    for found in points(rows):
        target = 0.5625 if found["family"] == "2:4" else 0.5
        if not found["policy"].endswith("+mid-dense"):  # whose thresholds are made for other values
            assert found["read"] == pytest.approx(target, abs=0.06), found["policy"]
        assert (found["stored"] < 1) == (found["family"] in {*CHANGES_WEIGHTS, *ON_TOP})
        assert found["low"] <= found["over_dense"] <= found["high"]
    stored = {found["policy"]: found["stored"] for found in points(rows)}
    assert stored["mid"] == stored["teal"] == 1 < stored["shadow-2"] < stored["shadow-3"]


def test_a_page_goes_on_from_its_file_which_is_that_of_a_sweep(model, rows, tmp_path):
    output, new = tmp_path / "rows.csv", []
    sample = Sample(TEXTS[1], "documents", 64)
    sweep(model, *TEXTS, ("mid",), (0.5,), "neuron", context=64, methods=("svd",), output=output)
    assert pareto([model], TEXTS[0], sample, (0.5,), output=output, on_row=new.append) == rows
    assert len(new) == len(rows) - 3 and sorted(map(str, read_record(output))) == sorted(map(str, rows))
    assert pareto([model], TEXTS[0], sample, (0.5,), workers=Workers(2)) == rows


@pytest.mark.slow
@pytest.mark.shared
def test_half_of_the_bytes_cost_what_an_independent_implementation_found(shared):
    train, valid = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))
        for part in ("train", "valid")
    )
    model = minillm.load(shared / "models" / "tinystories-656k")
    found = points(pareto([model], train[:100], Sample(valid, "documents", 512), (0.5,)))
    half = {row["family"]: row for row in best(found, model_of(found), 0.5)}
    expected = {"oracle": 19.2, "inputs": 21.9}
    for family, perplexity in expected.items():
        assert half[family]["perplexity"] == pytest.approx(perplexity, rel=0.005), family
    order = ["oracle", "predictor", "inputs", "unstructured", "structured", "SVD"]
    assert sorted(order, key=lambda family: half[family]["perplexity"]) == order


def model_of(found):
    (model,) = {row["model_sha256"] for row in found}
    return model


def test_intervals_are_those_of_the_generator_that_is_given(rows):
    first, again = (points(rows, np.random.default_rng(3)) for _ in range(2))
    assert first == again
