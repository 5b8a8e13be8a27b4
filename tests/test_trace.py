"""The tap protocol: edits and errors; the trace's table and files."""

import re

import fuzz
import numpy as np
import pytest
import tiny
from fuzz_arrays import npz_files
from passes import IDS, cut, traced

from minillm.archive import save_arrays
from minillm.divergence import compare
from minillm.errors import TraceError
from minillm.steps import step_names
from minillm.trace import Trace, chained, no_tap, scoped

# ---- the tap ---------------------------------------------------------------------------------------------------------


def test_scoped_puts_the_prefix_before_the_name_and_leaves_no_tap_alone():
    seen = []
    scoped(scoped(lambda name, value: seen.append(name), "blocks.3"), "mlp")("gate", None)
    assert seen == ["blocks.3.mlp.gate"]
    assert scoped(no_tap, "blocks.3") is no_tap and no_tap("gate", seen) is seen


def test_chained_taps_see_what_the_one_before_returned():
    seen = []
    tap = chained(lambda name, value: value + 1, lambda name, value: seen.append((name, value)) or value * 10)
    assert tap("gate", 1) == 20 and seen == [("gate", 2)] and chained()("gate", 3) == 3


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_traced_pass_and_an_identity_edit_are_bit_equal_to_the_plain_pass(family):
    model = tiny.model(family, np.float32)
    plain = model.forward(IDS)
    assert traced(model)["logits"].tobytes() == plain.tobytes()
    with Trace(keep="logits", edits={"*": lambda value: value}) as trace:
        edited = model.forward(IDS, tap=trace)
    assert edited.tobytes() == plain.tobytes() == trace["logits"].tobytes()


def test_an_edit_changes_what_follows_and_nothing_before_it():
    model = tiny.model()
    plain = traced(model)
    with Trace(edits={"blocks.1.mlp.mid": np.zeros_like}) as edited:
        model.forward(IDS, tap=edited)
    changed = [name for name in plain if not np.array_equal(plain[name], edited[name])]
    after = list(plain)[list(plain).index("blocks.1.mlp.mid") :]
    assert changed == after
    assert not edited["blocks.1.mlp.out"].any()


@pytest.mark.parametrize("form", ["masked", "gathered"])
def test_an_edit_of_any_step_reaches_the_logits(form):
    # A tap whose result were dropped would make an ablation silently do nothing.
    model = tiny.model()
    ffn = cut(model, "dhar", form=form)
    plain = traced(model, ffn=ffn)

    def other(value: np.ndarray) -> np.ndarray:
        return np.zeros_like(value) if value.dtype == bool else value[::-1] * 1.5

    for name in plain:
        if name.endswith(".reads"):
            continue  # a report of what was read: editing it changes nothing
        with Trace(keep="logits", edits={name: other}) as edited:
            model.forward(IDS, ffn=ffn, tap=edited)
        assert not np.array_equal(edited["logits"], plain["logits"]), name


def test_an_edit_that_writes_into_its_argument_writes_into_a_copy():
    def spoil(value: np.ndarray) -> np.ndarray:
        value[:] = 7
        return value

    source = np.ones((2, 3))
    edited = Trace(edits={"embed": spoil})("embed", source)
    assert (source == 1).all() and (edited == 7).all()


# ---- errors ----------------------------------------------------------------------------------------------------------


def refused(*named: str):
    return pytest.raises(TraceError, match="".join(f"(?=.*{re.escape(name)})" for name in named))


def test_a_pattern_that_matched_nothing_is_an_error_with_near_misses():
    with refused("the pattern 'blocks.0.mlp.gat'", "did you mean", "blocks.0.mlp.gate"):
        with Trace(keep=("embed", "blocks.0.mlp.gat")) as trace:
            tiny.model().forward(IDS, tap=trace)


def test_an_edit_that_never_fired_is_an_error_with_near_misses():
    with refused("the edit 'blocks.0.resid_mit'", "did you mean", "blocks.0.resid_mid"):
        with Trace(edits={"blocks.0.resid_mit": np.zeros_like}) as trace:
            tiny.model().forward(IDS, tap=trace)


def test_an_unknown_key_is_an_error_with_near_misses_and_says_whether_it_was_not_kept():
    with Trace(keep="blocks.*.mlp.*") as trace:
        tiny.model().forward(IDS, tap=trace)
    with refused("'blocks.0.mlp.gates' is no step", "did you mean", "blocks.0.mlp.gate"):
        trace["blocks.0.mlp.gates"]
    with refused("'embed' was not kept"):
        trace["embed"]
    with pytest.raises(KeyError):  # what a mapping promises
        trace["embed"]
    assert "embed" not in trace and trace.get("embed") is None and len(trace) == 12
    assert str(TraceError("a sentence")) == "a sentence"  # KeyError alone would print quotation marks


def test_a_second_pass_through_the_same_trace_is_an_error():
    model = tiny.model()
    trace = traced(model)
    with refused("embed came twice", "one Trace"):
        model.forward(IDS, tap=trace)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda value: value[:1], "float64[1, 8]"),
        (lambda value: value.astype(np.float32), "float32[5, 8]"),
        (lambda value: None, "object[]"),
    ],
)
def test_an_edit_that_changes_shape_or_dtype_is_an_error(edit, found):
    with refused("the edit of blocks.0.resid_mid", found, "expected float64[5, 8]"):
        with Trace(edits={"blocks.0.resid_mid": edit}) as trace:
            tiny.model().forward(IDS, tap=trace)


def test_keeping_more_than_the_budget_is_refused_with_a_hint_and_keeping_just_the_budget_is_not():
    model = tiny.model()
    with refused("keeping embed would take", "320 bytes", "budget of 319", "narrow keep"):
        model.forward(IDS, tap=Trace(keep="embed", budget=319))
    with Trace(keep="embed", budget=320) as trace:
        model.forward(IDS, tap=trace)
    assert trace.nbytes == 320


def test_an_exception_inside_the_block_propagates_and_leaves_nothing_behind():
    model = tiny.model()
    plain = model.forward(IDS)

    def fail(value):
        raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError, match="planted"):  # and not the pattern that matched nothing yet
        with Trace(keep="logits", edits={"blocks.0.mlp.up": fail}) as trace:
            model.forward(IDS, tap=trace)
    assert np.array_equal(model.forward(IDS), plain)
    assert len(traced(model)) == len(step_names(2))


def test_kept_arrays_are_read_only_copies():
    source = np.ones((2, 3))
    trace = Trace()
    assert trace("embed", source) is source
    source[:] = 5
    assert (trace["embed"] == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        trace["embed"][0, 0] = 2


# ---- show ------------------------------------------------------------------------------------------------------------


def test_explain_of_an_unknown_step_is_an_error_with_near_misses():
    with refused("'blocks.0.mlp.gat' is no step", "blocks.*.mlp.gate"):
        Trace().explain("blocks.0.mlp.gat")


def test_show_prints_one_row_per_kept_step_with_its_figures(capsys):
    trace = Trace()
    trace("blocks.0.mlp.mid", np.array([[0.0, -4.0], [1.0, 1.0]]))
    trace("blocks.0.mlp.mask", np.array([[False, True], [True, True]]))
    trace("of.mine", np.array([2.0]))
    trace.show()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["step", "dims", "shape", "mean", "max", "|.|", "zeros"]
    assert rows[1] == ["blocks.0.mlp.mid", "T", "F", "(2,", "2)", "-0.5", "4", "25.0%"]
    assert rows[2] == ["blocks.0.mlp.mask", "T", "F", "(2,", "2)", "0.75", "1", "25.0%"]
    assert rows[3] == ["of.mine", "?", "(1,)", "2", "2", "0.0%"]


def test_names_from_a_file_cannot_steer_the_terminal_or_run_into_the_next_column(capsys):
    long = "blocks.0." + "x" * 60
    trace = Trace()
    for name, value in (("\x1b[2J", [2e6]), (long, [1e-9]), ("empty", [])):
        trace(name, np.array(value))
    trace.show()
    heading, steering, second, empty = capsys.readouterr().out.splitlines()
    assert steering.split() == ["\\x1b[2J", "?", "(1,)", "2,000,000", "2,000,000", "0.0%"]
    assert second.split()[:4] == [long, "?", "(1,)", "1.000e-09"] and empty.split()[3] == "nan"
    printed = str(compare(trace, {"\x1b[2J": np.array([0.0]), long: np.array([1.0])}))
    assert "\x1b" not in printed and f"{long}  differs" in printed and "2,000,000" in printed


# ---- files -----------------------------------------------------------------------------------------------------------


def test_save_and_load_give_back_names_order_and_bits(tmp_path):
    model = tiny.model(dtype=np.float32)
    trace = traced(model, ffn=cut(model, "dhar"))
    trace.save(tmp_path / "ours.npz")
    back = Trace.load(tmp_path / "ours.npz")
    assert list(back) == list(trace)
    for name in trace:
        assert back[name].dtype == trace[name].dtype and back[name].tobytes() == trace[name].tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["ours.npz"]  # nothing beside it


def test_a_trace_that_was_kept_under_a_larger_budget_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(Trace.__init__, "__defaults__", ("*", None, 100, None))
    save_arrays(tmp_path / "large.npz", {"embed": np.ones((5, 8))})
    assert Trace.load(tmp_path / "large.npz")["embed"].shape == (5, 8)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "trace.npz"
    save_arrays(path, {"embed": np.ones(3)})
    before = path.read_bytes()

    class Breaks:
        def __array__(self, *args, **kwargs):
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        save_arrays(path, {"embed": np.zeros(3), "resid_mid": Breaks()})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written_the_error_is_one_sentence(tmp_path):
    with refused("absent", "cannot be written"):
        save_arrays(tmp_path / "absent" / "trace.npz", {"embed": np.ones(3)})
    with refused("cannot be written"):
        save_arrays(tmp_path, {"embed": np.ones(3)})
    assert not list(tmp_path.parent.glob("*.partial"))


def test_what_is_no_archive_is_refused_in_one_sentence_that_names_the_file(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"not a zip file at all")
    with refused("broken.npz", "not an .npz file"):
        Trace.load(tmp_path / "broken.npz")
    with refused("absent.npz", "is missing"):
        compare(tmp_path / "absent.npz", tmp_path / "broken.npz")


def test_a_trace_carries_its_model_and_one_of_pytorch_has_none(tmp_path):
    model = tiny.model()
    with Trace(keep="embed", model=model.fingerprint) as trace:
        model.forward(IDS, tap=trace)
    trace.save(tmp_path / "ours.npz")
    assert Trace.load(tmp_path / "ours.npz").model == model.fingerprint
    with np.load(tmp_path / "ours.npz") as file:  # other programs see the arrays and nothing else
        assert list(file) == ["embed"]
    np.savez(tmp_path / "theirs.npz", **trace)
    assert Trace.load(tmp_path / "theirs.npz").model is None


@pytest.mark.parametrize(
    ("comment", "says"),
    [
        (b'{"format": "minillm-trace", "version": 2}', "version is 2"),
        (b'{"format": "trace", "version": 1}', "format is 'trace'"),
        (b'{"format": "minillm-trace", "version": 1, "modle": 1}', "holds 'modle'"),
        (b'{"format": "minillm-trace", "version": 1, "model": {}}', "model is {}"),
        (b"{", "not valid JSON"),
    ],
)
def test_a_comment_that_is_not_ours_is_refused(tmp_path, comment, says):
    save_arrays(tmp_path / "trace.npz", {"embed": np.ones((5, 8))}, comment)
    with refused("trace.npz", says):
        Trace.load(tmp_path / "trace.npz")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"../embed": np.ones((5, 8))}, "'../embed', expected the name of a step"),
        ({"embed\x1b[2J": np.ones((5, 8))}, "expected the name of a step"),
        ({"embed": np.ones(8)}, "embed has shape [8], expected T x D"),
        ({"embed": np.ones((5, 8)), "blocks.0.resid_pre": np.ones((5, 9))}, "D = 8, as in embed"),
        ({"embed": np.ones((5, 8)), "blocks.0.mlp.mid": np.ones((4, 12))}, "T = 5, as in embed"),
        ({"blocks.0.mlp.mid": np.ones((4, 12)), "blocks.0.mlp.up": np.ones((4, 13))}, "F = 12, as in blocks.0.mlp.mid"),
        ({"blocks.0.mlp.reads": np.ones((4, 4))}, "with 3 = 3"),
    ],
)
def test_a_trace_whose_names_or_shapes_cannot_be_is_refused(tmp_path, arrays, says):
    save_arrays(tmp_path / "trace.npz", arrays)
    with refused("trace.npz", says):
        Trace.load(tmp_path / "trace.npz")


def test_layers_may_differ_in_width_and_an_unknown_step_is_noted(tmp_path):
    arrays = {"blocks.0.mlp.mid": np.ones((4, 12)), "blocks.1.mlp.mid": np.ones((4, 7))}
    save_arrays(tmp_path / "trace.npz", arrays)
    assert len(Trace.load(tmp_path / "trace.npz")) == 2
    save_arrays(tmp_path / "trace.npz", arrays | {"blocks.0.mlp.midd": np.ones(3)})
    with pytest.warns(UserWarning, match="trace.npz: holds 'blocks.0.mlp.midd', which is no step"):
        assert len(Trace.load(tmp_path / "trace.npz")) == 3


def test_scores_that_exceed_the_budget_are_refused_before_they_are_made(monkeypatch):
    model = tiny.model(max_position_embeddings=512)
    heads, tokens = model.config.num_attention_heads, 300
    need = heads * tokens * tokens * 8
    monkeypatch.setattr("minillm.transformer.attention.attend", lambda *a: pytest.fail("made"))
    for keep, arrays in (("*.scores", 2), ("blocks.0.attn.*n", 1), (("*.scores", "*.pattern"), 4)):  # of two layers
        with refused("keeping blocks.0.attn.", f"{arrays * need:,} bytes", f"budget of {arrays * need - 1:,}"):
            model.forward([1] * tokens, tap=Trace(keep=keep, budget=arrays * need - 1))
    with refused("keeping blocks.1.attn.scores", f"{need:,} bytes"):
        model.forward([1] * tokens, tap=Trace(keep="blocks.1.attn.scores", budget=need - 1))
    monkeypatch.undo()
    with Trace(keep="blocks.0.attn.scores", budget=need) as trace:
        model.forward([1] * tokens, tap=trace)
    assert trace.nbytes == need


def valid(trace: Trace) -> bool:
    assert all(value.dtype.kind in "biuf" for value in trace.values())
    assert all(name.isprintable() and "/" not in name for name in trace)
    assert sum(value.nbytes for value in trace.values()) < 1 << 28
    if {"embed", "blocks.0.mlp.mid"} <= set(trace):
        assert len(trace["embed"]) == len(trace["blocks.0.mlp.mid"])
    return True


@fuzz.examples
@pytest.mark.filterwarnings("ignore:.*which is no step", "ignore:Reading .*additional header parsing")
def test_a_broken_trace_is_one_sentence_or_a_good_trace(examples, tmp_path):
    model = tiny.model()
    with Trace(keep=["embed", "blocks.0.*", "logits"], model=model.fingerprint) as trace:
        model.forward(IDS, ffn=cut(model, "dhar"), tap=trace)
    trace.save(tmp_path / "good.npz")
    files = npz_files((tmp_path / "good.npz").read_bytes())
    counts = fuzz.holds(examples, files, tmp_path / "trace.npz", Trace.load, valid)
    assert min(counts["accepted"], counts["refused"]) > examples / 50
