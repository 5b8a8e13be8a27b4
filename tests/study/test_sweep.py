"""Sweeps: how a text is divided, what a row holds, that it holds what the parts say by themselves; that a sweep goes on
where it was killed, and gives the same rows in parallel."""

import math
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods.base import fit
from minillm.sparsity import magnitudes
from minillm.study import sweep as module
from minillm.study.bootstrap import compare_policies
from minillm.study.record import read_record
from minillm.study.sweep import model_digest, sweep, text_digest
from minillm.tables import save_rows
from minillm.transformer.texts import first_tokens, runs, split_text

STORIES = [f"{story} {number}" for number in range(3) for story in tiny.STORIES]
TEXT = "\n<|endoftext|>\n".join(STORIES)
KEYS = """model policy by target achieved level neuron_sparsity tensor_sparsity read_gate read_up read_down read_exact
read_known_mask union_density union_window perplexity vs_dense bits_per_byte nll tokens bytes protocol context bos
dtype spec document_nll document_tokens stored model_sha256 calibration_sha256 test_sha256 fingerprint""".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("sweep") / "m")


def test_a_text_is_divided_at_40_percent_of_its_documents():
    calibration, test = split_text(TEXT)
    assert (len(calibration), calibration + test) == (5, STORIES)  # 0.4 * 12 = 4.8
    assert split_text(STORIES) == (calibration, test)  # a list of documents is the same
    assert split_text(["a", "b"]) == (["a"], ["b"])
    assert [len(part) for part in split_text([str(i) for i in range(10)], 0.7)] == [7, 3]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("aaaa\nbb\ncccc\ndd", ("aaaa\nbb", "cccc\ndd")),  # 40 % of 15 is 6: the line end at 7 is nearer than that at 4
        ("aaaa\nbbbbbbbbbb", ("aaaa", "bbbbbbbbbb")),  # 40 % of 15 is 6: the only line end is before it
        ("aaaaaaaaaa\nbbbb", ("aaaaaaaaaa", "bbbb")),  # and here after it
        ("abcdefghij", ("abcd", "efghij")),  # no line end: at the character
        ("漢字" * 5, ("漢字漢字", "漢字" * 3)),  # characters, not bytes
    ],
)
def test_a_single_document_is_cut_at_the_line_end_nearest_to_40_percent(text, parts):
    assert split_text(text) == ([parts[0]], [parts[1]])


@pytest.mark.parametrize("text", ["", "a", "\n<|endoftext|>\n", [], ["a"]])
def test_a_text_too_short_to_divide_is_refused(text):
    with pytest.raises(MinillmError, match=r"the text holds \d document\(s\), too few"):
        split_text(text)


@pytest.mark.parametrize("context", [None, 8])
def test_first_tokens_keeps_just_as_many_documents_as_hold_them(model, context):
    counts = [len(model.tokenizer.encode(story, bos=False)) for story in STORIES]
    for wanted in (counts[0] - 1, counts[0], counts[0] + 1, sum(counts[:4]), sum(counts[:4]) + 1, sum(counts) - 1):
        kept = first_tokens(model, STORIES, wanted, context)
        assert kept == STORIES[: len(kept)]
        assert sum(counts[: len(kept)]) >= wanted > sum(counts[: len(kept) - 1])
    assert first_tokens(model, STORIES, sum(counts) + 1, context) == STORIES  # there are no more


def test_rows_come_dense_first_then_by_sparsity_and_policy_with_all_keys(model):
    calibration, test = split_text(TEXT)
    rows = sweep(model, calibration, test, ("mid", "dhar"), (0.3, 0.6), context=64)
    assert [(r["policy"], r["target"]) for r in rows] == [
        ("dense", None), ("mid", 0.3), ("dhar", 0.3), ("mid", 0.6), ("dhar", 0.6)
    ]  # fmt: skip
    assert all(list(r) == KEYS for r in rows)
    dense = rows[0]
    assert (dense["neuron_sparsity"], dense["read_exact"], dense["read_known_mask"], dense["vs_dense"]) == (0, 1, 1, 1)
    assert dense["by"] is dense["achieved"] is dense["level"] is dense["union_density"] is None
    for key in ("tokens", "bytes", "protocol", "context", "bos", "dtype", "model"):
        assert len({r[key] for r in rows}) == 1  # what must be equal for rows to be compared
    assert all(r["vs_dense"] == r["perplexity"] / dense["perplexity"] for r in rows)


def test_sweeping_shares_one_calibration_pass_between_policies_and_changes_nothing(model):
    calibration, test = split_text(TEXT)
    together = sweep(model, calibration, test, ("dhar", "cats", "mid"), (0.4,))[1:]
    alone = [sweep(model, calibration, test, (policy,), (0.4,))[1] for policy in ("dhar", "cats", "mid")]
    assert together == alone


def test_an_unknown_policy_is_refused_before_anything_is_scored(model):
    with pytest.raises(MinillmError, match="policy 'nothing' is unknown"):
        sweep(model, STORIES[:1], STORIES[1:], ("mid", "nothing"), (0.5,), on_row=lambda found: pytest.fail("scored"))


# ---- a record, and going on from it ----------------------------------------------------------------------------------

POLICIES, TARGETS = ("mid", "cats"), (0.3, 0.6)


def swept(model, output=None, **changes):
    """A small sweep; changes replace its arguments."""
    calibration, test = split_text(TEXT)
    what = {"models": model, "calibration": calibration, "test": test, "policies": POLICIES, "sparsities": TARGETS}
    return sweep(**what | {"context": 64, "output": output} | changes)


@pytest.fixture(scope="module")
def rows(model):
    return swept(model)


@pytest.fixture
def passes(model, monkeypatch):
    """How many runs went through the model so far, in a list that holds one number."""
    count, hidden = [0], model.hidden
    monkeypatch.setattr(model, "hidden", lambda *a, **k: (count.__setitem__(0, count[0] + 1), hidden(*a, **k))[1])
    return count


@pytest.mark.parametrize("name", ["rows.csv", "rows.json"])
def test_a_finished_sweep_is_read_back_equal_and_nothing_is_computed(model, rows, passes, tmp_path, name):
    assert swept(model, tmp_path / name) == rows and passes[0] > 0
    written, passes[0] = (tmp_path / name).read_bytes(), 0
    assert swept(model, tmp_path / name, on_row=lambda row: pytest.fail("computed again")) == rows
    assert passes == [0] and (tmp_path / name).read_bytes() == written
    assert read_record(tmp_path / name) == rows


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import tiny, minillm
from minillm.study.sweep import sweep
from minillm.transformer.texts import split_text
calibration, test = split_text({text!r})
def told(row):
    print(row["policy"], flush=True)
    time.sleep(0.3)
sweep(minillm.load({folder!r}, "float64"), calibration, test, {policies!r}, {targets!r}, context=64,
      output={output!r}, on_row=told)
"""


def test_a_killed_sweep_goes_on_without_computing_a_finished_row_again(model, rows, passes, tmp_path):
    output = tmp_path / "rows.csv"
    script = CHILD.format(
        tests=str(Path(tiny.__file__).parent), text=TEXT, folder=str(model.folder), policies=POLICIES, targets=TARGETS,
        output=str(output),
    )  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert child.stdout.readline()
    child.kill()  # no handler runs: SIGKILL, TerminateProcess
    child.wait()
    child.stdout.close()
    recorded = read_record(output)
    assert 3 <= len(recorded) < len(rows) and recorded == rows[: len(recorded)]  # whole, in plan order, equal
    new = []
    assert swept(model, output, on_row=new.append) == rows and new == rows[len(recorded) :]
    # Calibration text: collected once, then measured once per row. Test text: once per row. Nothing for the dense row.
    calibration, test = (len(runs(model, text, context=64)) for text in split_text(TEXT))
    assert passes[0] == calibration + len(new) * (calibration + test)
    assert read_record(output) == rows
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")] == ["rows.csv"]


def test_a_sweep_may_grow_and_its_file_keeps_the_order_of_the_plan(model, rows, tmp_path):
    output, new = tmp_path / "rows.json", []
    swept(model, output, policies=("cats",))
    grown = swept(model, output, on_row=new.append)
    assert grown == rows and [(r["policy"], r["target"]) for r in new] == [("mid", 0.3), ("mid", 0.6)]
    assert read_record(output) == rows
    swept(model, output, policies=("topk", *POLICIES), on_row=new.append)
    assert [r["policy"] for r in read_record(output)] == ["dense", "topk", "mid", "cats", "topk", "mid", "cats"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"context": 32}, "context 64, expected 32"),
        ({"protocol": "stream"}, "protocol documents, expected stream"),
        ({"test": STORIES[6:]}, r"test_sha256 \w{12}\.\.\., expected \w{12}\.\.\."),
        ({"calibration": STORIES[:2]}, "calibration_sha256"),
    ],
)
def test_rows_of_another_sweep_are_refused_before_the_work_and_stay(model, passes, tmp_path, rows, changes, found):
    output = tmp_path / "rows.csv"
    save_rows(output, rows)
    before = output.read_bytes()
    with pytest.raises(
        MinillmError, match=rf"rows\.csv: row \d is of another sweep .*{found}.*to begin anew, name anoth"
    ):
        swept(model, output, **changes)
    assert passes == [0] and output.read_bytes() == before


def test_another_model_of_the_same_name_another_dtype_and_other_weights_are_other_rows(model, rows, tmp_path):
    output = tmp_path / "rows.csv"
    other = tiny.loaded(tmp_path / "m", seed=1)
    assert other.name == model.name and model_digest(other) != model_digest(model)
    save_rows(output, rows)
    expected = f"row 1 is of another sweep (of {model.fingerprint}, expected {other.fingerprint})"
    with pytest.raises(MinillmError, match=re.escape(expected)):
        swept(other, output)
    with pytest.raises(MinillmError, match=r"sweep \(dtype float64, expected float32\)"):
        swept(minillm.load(model.folder, "float32"), output)
    both = swept([model, other], output)  # but beside each other they may stand
    assert both[: len(rows)] == rows and both[len(rows) :] == swept(other)


def test_a_fingerprint_is_that_of_weights_config_and_tokenizer(model, tmp_path):
    same = minillm.load(model.folder, "float64")
    assert model_digest(same) == model_digest(model)
    same.layers[1] = replace(same.layers[1], down_proj=same.layers[1].down_proj + 1e-9)
    assert model_digest(same) != model_digest(model)
    assert model_digest(tiny.loaded(tmp_path / "eps", rms_norm_eps=1e-6)) != model_digest(model)
    assert model_digest(tiny.loaded(tmp_path / "bos", bos=False)) != model_digest(model)


def test_a_text_digest_knows_where_documents_end():
    digests = {text_digest(text) for text in ("ab", ["ab"], ["a", "b"], ["ab", ""], "", [])}
    assert len(digests) >= 5 and text_digest(["\ud800"])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.csv", "a,b\n1,2\n", "row 1 holds 'a', expected only model, policy,"),
        ("rows.json", '[{"a": 1}]', "row 1 holds 'a'"),
        ("rows.json", "[{}]", "row 1 has no model, expected a text; mend the file"),
        ("rows.json", "{}", "expected a list with one object per row"),
        ("rows.json", "[1, ", "is not valid JSON"),
        ("rows.csv", 'a,b\n1,"2\n', "is no CSV table"),
        ("rows.csv", "a,b\n1\n", "row 1 has 1 cells, expected one for each of 2 columns"),
        ("rows.csv", b"\xff\xfe", "is not UTF-8"),
        ("rows.txt", "", "expected .csv or .json"),
    ],
)
def test_a_file_that_is_no_record_is_refused_and_stays(model, passes, tmp_path, name, content, sentence):
    output = tmp_path / name
    output.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MinillmError) as problem:
        swept(model, output)
    assert sentence in str(problem.value) and str(output) in str(problem.value) and passes == [0]
    assert output.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_an_output_that_cannot_be_written_gives_one_sentence(model, tmp_path):
    with pytest.raises(MinillmError, match=r"rows\.csv: cannot be written"):
        swept(model, tmp_path / "absent" / "rows.csv")


def test_a_file_of_many_documents_is_read_back(tmp_path, rows):
    nll, tokens = [math.pi / 7] * 20_000, [1] * 20_000  # a cell of 400 kB
    long = rows[0] | {"document_nll": nll, "document_tokens": tokens, "nll": sum(nll), "tokens": 20_000}
    long |= {"perplexity": math.exp(math.pi / 7), "bits_per_byte": sum(nll) / math.log(2) / long["bytes"]}
    save_rows(tmp_path / "rows.csv", [long])
    assert read_record(tmp_path / "rows.csv") == [long]


# ---- methods ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(model):
    """Rows of two policies and two methods."""
    return swept(model, methods=("wanda", "magnitude"))


def test_methods_stand_after_the_policies_of_each_target_and_leave_their_rows_as_they_are(rows, both):
    order = [(r["policy"], r["by"], r["target"]) for r in both]
    cuts = [("mid", "tensor"), ("cats", "tensor"), ("wanda", "weights"), ("magnitude", "weights")]
    assert order == [("dense", None, None), *((*cut, target) for target in TARGETS for cut in cuts)]
    assert [r for r in both if r["by"] != "weights"] == rows and all(list(r) == KEYS for r in both)
    for r in both:
        if r["by"] == "weights":
            assert abs(r["achieved"] - r["target"]) <= 1 / 8 and 0.05 < 1 - r["read_exact"] < r["target"]
            assert r["read_exact"] == r["read_known_mask"] and r["level"] is None
            assert "smallest of each row" in r["spec"]


def test_a_sweep_of_methods_goes_on_from_its_file_and_is_the_same_by_two_processes(model, both, tmp_path):
    output, new = tmp_path / "rows.csv", []
    swept(model, output, methods=("wanda",))
    assert swept(model, output, methods=("wanda", "magnitude"), on_row=new.append) == both
    assert [r["policy"] for r in new] == ["magnitude"] * 2 and read_record(output) == both
    again = swept(model, output, methods=("wanda", "magnitude"), on_row=lambda row: pytest.fail("computed again"))
    assert again == both
    assert swept(model, methods=("wanda", "magnitude"), jobs=2) == both
    assert swept(model, output, methods=("wanda",)) == [r for r in both if r["policy"] != "magnitude"]
    assert sorted(map(str, read_record(output))) == sorted(map(str, both))  # the rows of the other one stay


def test_methods_alone_collect_no_magnitudes_and_an_unknown_one_is_refused_before_the_work(model, both, monkeypatch):
    monkeypatch.setattr(module, "collect", lambda *a: pytest.fail("collected"))
    alone = swept(model, policies=(), methods=("wanda", "magnitude"))
    assert alone == [r for r in both if r["by"] in (None, "weights")]
    with pytest.raises(MinillmError, match="method 'wand' is unknown"):
        swept(model, methods=("wand",), on_row=lambda row: pytest.fail("scored"))


def test_two_methods_are_compared_at_equal_weights_removed(both):
    compared = compare_policies(both, "magnitude")
    assert [(r["policy"], r["by"], r["target"]) for r in compared] == [("wanda", "weights", t) for t in TARGETS]
    assert all(r["share"] == r["baseline_share"] for r in compared)


def test_what_a_row_stores_is_its_smallest_form_beside_the_dense_model(model, both):
    assert {row["stored"] for row in both if row["by"] != "weights"} == {1.0}
    made = fit("wanda", model, split_text(TEXT)[0], 0.6, 64)
    found = next(row for row in both if (row["policy"], row["target"]) == ("wanda", 0.6))
    assert found["stored"] == made.stored["bitmap"] / made.stored["dense"] < 1


def test_a_file_that_is_older_than_a_column_is_gone_on_with(model, rows, tmp_path):
    output = tmp_path / "rows.csv"
    save_rows(output, [{key: value for key, value in row.items() if key != "stored"} for row in rows[:2]])
    assert [row.get("stored") for row in swept(model, output)] == [None, None, *(row["stored"] for row in rows[2:])]


# ---- in parallel -----------------------------------------------------------------------------------------------------


def test_rows_are_the_same_by_two_processes_which_may_not_write_to_what_they_share(model, rows, tmp_path):
    with joblib.parallel_config(backend="loky", max_nbytes=64):  # every array is a read-only file
        for by in ("tensor", "neuron"):
            assert swept(model, tmp_path / f"{by}.csv", by=by, jobs=2) == swept(model, by=by)
    assert read_record(tmp_path / "tensor.csv") == rows


def test_the_backend_is_joblibs_to_choose_and_calibration_is_collected_once(model, rows, monkeypatch):
    calls, collect = [], magnitudes.collect
    monkeypatch.setattr(module, "collect", lambda *a: calls.append(a) or collect(*a))
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert swept(model, jobs=None) == rows and len(calls) == 1
        assert swept([model, minillm.load(model.folder, "float32")], jobs=2)[: len(rows)] == rows and len(calls) == 3


def test_a_note_of_a_worker_is_shown_and_an_error_is_one_sentence(model):
    calibration, test = split_text(TEXT)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        swept(model, test=[*test, calibration[0]], jobs=2)
    assert any("1 of the documents scored are among those" in str(note.message) for note in notes)
    with pytest.raises(MinillmError, match="reads at least 0.667 of the weights"):
        swept(model, policies=("mid",), sparsities=(0.5,), by="reads", jobs=2)


def test_without_joblib_one_job_runs_and_two_give_a_sentence(model, rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert swept(model) == rows
    with pytest.raises(MinillmError, match=r"more than one job needs joblib: pip install '\.\[study\]'"):
        swept(model, jobs=2)


@pytest.mark.parity
def test_a_dask_cluster_gives_the_same_rows_and_each_worker_is_sent_what_they_share_once(model, rows, tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        with joblib.parallel_config(backend="dask"):
            assert swept(model, tmp_path / "rows.csv", jobs=None) == rows
    calibration, test = split_text(TEXT)
    shared = module.Shared(model, calibration, test, None, None)
    assert sys.getsizeof(shared) > 1000  # what joblib's dask backend scatters


def test_a_context_of_numpy_is_recorded_as_a_number(model, tmp_path):
    output = tmp_path / "rows.json"
    how = {"by": "neuron", "output": output}
    rows = sweep(model, tiny.STORIES[:2], tiny.STORIES[2:], ["mid"], np.array([0.5]), context=np.int64(32), **how)
    assert sweep(model, tiny.STORIES[:2], tiny.STORIES[2:], ["mid"], [0.5], context=32, **how) == rows
    assert {type(row["context"]) for row in rows} == {int}
