"""LaRoSA: its bases, the same cut with W Q, what is kept and read by hand, and what turning is worth on a model."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods import larosa
from minillm.methods.base import INPUTS
from minillm.methods.larosa import bases_of, turned_top_inputs
from minillm.methods.qsparse import groups_of, kept_inputs, top_inputs
from minillm.study.score import score_variant
from minillm.trace import Trace, chained
from minillm.transformer.documents import split_documents
from minillm.transformer.texts import runs

TEXT = [f"{story} And {i} more." for i in range(2) for story in tiny.STORIES]
IDS = [1, 5, 3, 9, 30, 2, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("larosa") / "m")


def test_a_basis_is_orthonormal_and_the_inputs_are_uncorrelated_in_it(model):
    bases = bases_of(model, TEXT, None, ["attn.norm", "mlp.norm"])
    assert list(bases) == [f"blocks.{i}.{step}" for i in (0, 1) for step in ("attn.norm", "mlp.norm")]
    for name, basis in bases.items():
        np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=1e-5)
        rows = []
        for run in runs(model, TEXT):
            with Trace(keep=name) as trace:
                model.forward(run.ids[:-1], tap=trace)
            rows.append(trace[name][run.unscored - 1 :])
        z = np.concatenate(rows) @ basis
        correlated = z.T @ z
        assert np.abs(correlated - np.diag(np.diag(correlated))).max() < 1e-4 * np.trace(correlated)
        assert (np.diff(np.diag(correlated)) > -1e-3).all()  # eigh: the smallest first


def test_the_cut_input_gives_what_the_kept_columns_of_w_q_give(model):
    """W times the input that is turned back, and W Q times the cut coordinates: K columns of W Q are all it takes."""
    made, trace, seen = larosa.fit(model, TEXT, 0.6), Trace(), Trace()
    model.forward(IDS, tap=chained(seen, made.tap, trace))
    bases = bases_of(model, TEXT, None, ["mlp.norm"])
    for layer in model.layers:
        name = f"blocks.{layer.index}.mlp.norm"
        z = seen[name] @ bases[name]
        mask = kept_inputs(z, 3, 8)  # floor(0.4 * 8)
        assert (mask.sum(axis=1) == 3).all()
        turned = layer.gate_proj @ bases[name]  # W Q
        expected = np.stack([turned[:, keep] @ row[keep] for row, keep in zip(z, mask, strict=True)])
        np.testing.assert_allclose(trace[f"blocks.{layer.index}.mlp.gate_pre"], expected, atol=1e-5)
        mid = trace[f"blocks.{layer.index}.mlp.mid"]
        assert (np.count_nonzero(mid, axis=1) == 4).all()  # floor(0.4 * 12), in its own basis


def test_in_the_basis_of_the_inputs_themselves_it_is_the_plain_cut(model):
    groups = groups_of(model, 0.5)
    plain = model.forward(IDS, tap=top_inputs(groups))
    ones = {f"blocks.{i}.{step}": np.eye(8, dtype=np.float32) for i in (0, 1) for step in larosa.TURNED}
    assert np.array_equal(model.forward(IDS, tap=turned_top_inputs(groups, ones)), plain)
    turned = larosa.fit(model, TEXT, 0.5, matrices="all")
    assert not np.allclose(model.forward(IDS, tap=turned.tap), plain, atol=1e-3)


@pytest.mark.parametrize("matrices", ["ffn", "all"])
def test_target_0_is_the_dense_model(model, matrices):
    made = larosa.fit(model, TEXT, 0.0, matrices=matrices)
    assert np.array_equal(model.forward(IDS, tap=made.tap), model.forward(IDS))
    assert all(read.exact == read.dense for read in made.reads.values()) and made.spec.achieved == 0


def test_the_bytes_are_the_kept_columns_and_the_rotations(model):
    made = larosa.fit(model, TEXT, 0.5)
    weights, turn = 2 * 2 * 96, 2 * 2 * 64  # bytes of two layers: of F D weights, of the D D numbers of a basis
    assert made.reads["gate_proj"] == made.reads["up_proj"] == (weights, weights / 2 + turn / 2, weights / 2 + turn / 4)
    assert made.reads["down_proj"] == (weights, weights / 2, weights / 2)
    assert made.reads["q_proj"].exact == made.reads["q_proj"].dense
    assert made.stored == {"dense": 2 * sum(model.parameters.values()) + turn}
    row = score_variant(made, tiny.STORIES[:3], minillm.perplexity(model, tiny.STORIES[:3]))
    assert (row["by"], row["achieved"], row["neuron_sparsity"]) == ("tensor", 0.5, 0.5)
    whole = larosa.fit(model, TEXT, 0.5, matrices="all").reads
    attention = sum(whole[name].exact for name in ("q_proj", "k_proj", "v_proj"))
    dense = sum(whole[name].dense for name in ("q_proj", "k_proj", "v_proj"))
    assert attention == pytest.approx(dense / 2 + turn) and whole["o_proj"].exact == whole["o_proj"].dense / 2
    assert list(whole) == list(INPUTS)


def test_a_target_that_keeps_nothing_and_other_matrices_are_refused(model):
    with pytest.raises(MinillmError, match=r"target is 0\.9: of 8 inputs none would stay"):
        larosa.fit(model, TEXT, 0.9)
    with pytest.raises(MinillmError, match="matrices is 'attention', expected one of ffn, all"):
        larosa.fit(model, TEXT, 0.5, matrices="attention")


def test_a_model_without_gates_is_refused_by_name():
    with pytest.raises(MinillmError, match="method larosa .* have no gate"):
        larosa.fit(tiny.model("opt"), TEXT, 0.5)


@pytest.mark.shared
@pytest.mark.slow
def test_with_equally_many_inputs_turning_helps_and_its_own_bytes_are_more_than_it_is_worth(shared):
    """On a model with F = 3 D, where a rotation is a ninth of the FFN's weights."""
    model = minillm.load(shared / "models" / "tinystories-656k")
    train, test = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))
        for part in ("train", "valid")
    )
    calibration, test = train[:30], test[:40]

    def score(made) -> float:
        return minillm.perplexity(model, test, context=512, tap=made.tap).perplexity

    turned = larosa.fit(model, calibration, 0.5, context=512)
    groups = {name: group for name, group in groups_of(model, 0.5).items() if ".mlp." in name}
    plain = minillm.perplexity(model, test, context=512, tap=top_inputs(groups)).perplexity
    assert score(turned) < 0.95 * plain
    fewer = larosa.fit(model, calibration, 0.61, context=512)  # reads with the rotation: those of ``plain``
    reads = sum(fewer.reads[name].exact for name in INPUTS if name in ("gate_proj", "up_proj", "down_proj"))
    dense = sum(fewer.reads[name].dense for name in ("gate_proj", "up_proj", "down_proj"))
    assert abs(reads / dense - 0.5) < 0.01 and score(fewer) > plain
