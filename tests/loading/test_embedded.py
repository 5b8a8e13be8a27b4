"""The embedded models and texts: there, small, lossless, good enough, equal to transformers, and in the wheel."""

import json
import os
import re
import shutil
import string
import subprocess
import sys
import tarfile
import warnings
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripts import load_script

import minillm
from minillm.cli import flags
from minillm.cli import flags as flags_module
from minillm.cli.main import main
from minillm.errors import CheckpointError, MinillmError
from minillm.loading.checkpoint import checkpoint_tensors
from minillm.loading.embedded import DATA, embedded_model, embedded_models, embedded_text
from minillm.loading.hub import resolve
from minillm.transformer.texts import document_hashes, runs

ROOT = Path(__file__).parents[2]
write_stories = load_script("weights_scripts/write_stories.py")
MODELS = embedded_models()
every_model = pytest.mark.parametrize("name", MODELS)
the_default = pytest.mark.parametrize("name", [name for name in MODELS if name == "default"])
PROMPT = "Once upon a time, there was a little girl named Lily."
_loaded = {}


def load(name: str):
    """An embedded model, loaded once for all tests."""
    if name not in _loaded:
        _loaded[name] = minillm.load(name)
    return _loaded[name]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_the_default_model_and_its_texts_are_there():
    assert "default" in MODELS
    assert {path.stem for path in (DATA / "text").glob("*.txt")} == {"calibration", "test"}


def test_a_name_is_exactly_a_folder_of_the_package_that_holds_a_config(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.loading.embedded.DATA", tmp_path)
    tiny.folder(tmp_path / "default-b"), tiny.folder(tmp_path / "default")
    (tmp_path / "text").mkdir()
    assert embedded_models() == ["default", "default-b"]
    assert embedded_model("default-b") == resolve("default-b") == tmp_path / "default-b"
    assert minillm.load("default-b").name == "default-b"
    for other in ("text", "", ".", "..", "default/", "./default", "Default", "default-foo", Path("default"), None, 3):
        assert embedded_model(other) is None
    with pytest.raises(CheckpointError, match=r"'default-foo': does not exist, .* \(default, default-b\)"):
        minillm.load("default-foo")


def test_an_embedded_name_wins_over_a_folder_of_the_current_directory_which_a_path_names(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.loading.embedded.DATA", tmp_path / "data")
    tiny.folder(tmp_path / "data" / "default"), tiny.folder(tmp_path / "default", num_hidden_layers=3)
    monkeypatch.chdir(tmp_path)
    assert minillm.load("default").config.num_hidden_layers == 2
    for source in ("./default", Path("default"), str(tmp_path / "default"), "default/"):
        assert minillm.load(source).config.num_hidden_layers == 3


def test_texts_are_read_by_name_and_an_unknown_name_lists_them(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.loading.embedded.DATA", tmp_path)
    with pytest.raises(MinillmError, match="no embedded text 'test', and .* holds no text at all"):
        embedded_text("test")
    (tmp_path / "text").mkdir()
    for name in ("calibration", "test"):
        (tmp_path / "text" / f"{name}.txt").write_bytes(f"Ein Bär, {name}.\r\n".encode())
    assert embedded_text("test") == minillm.embedded_text("test") == "Ein Bär, test.\n"
    with pytest.raises(MinillmError, match="no embedded text '../test', expected one of calibration, test"):
        embedded_text("../test")


# ---- the command line, with stand-ins of the same names --------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path, monkeypatch, capsys):
    """run(*arguments) -> (status, stdout, stderr) with a tiny model and tiny texts in the place of the embedded."""
    monkeypatch.setattr("minillm.loading.embedded.DATA", tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main changes it for its process, and these
    for name in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "BLIS_NUM", "VECLIB_MAXIMUM"):
        monkeypatch.setenv(f"{name}_THREADS", "1")
    tiny.folder(tmp_path / "default")
    (tmp_path / "text").mkdir()
    for name, stories in (("calibration", tiny.STORIES[:2]), ("test", tiny.STORIES[2:])):
        (tmp_path / "text" / f"{name}.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")

    def run(*arguments):
        return main([str(argument) for argument in arguments]), *capsys.readouterr()

    return run


def test_minillm_without_arguments_is_the_demo_on_the_embedded_model_and_texts(stand_in):
    status, out, err = stand_in()
    assert status == 0 and out.startswith("default: llama, 5,992 weights") and "`minillm --help`" in err
    assert re.search(r"2 documents of [^.]*embedded calibration text", " ".join(out.split()))
    assert "text: the embedded test text" in err and "note" not in err and stand_in("demo")[1] == out
    rows = json.loads(stand_in("demo", "--json")[1])["rows"]
    assert rows[0]["nll"] == minillm.perplexity(minillm.load("default"), tiny.STORIES[2:]).nll


def test_every_command_runs_on_the_embedded_model_and_takes_its_own_text(stand_in, tmp_path):
    model, thresholds, file = minillm.load("default"), tmp_path / "t.json", tmp_path / "one.txt"
    file.write_text("A cat.\nA dog.\nThe sea.", encoding="utf-8")
    status, out, err = stand_in("perplexity")
    assert (status, " ".join(out.split())) == (0, str(minillm.perplexity(model, tiny.STORIES[2:])))
    assert err == "text: the embedded test text\n"
    assert stand_in("calibrate", "-o", thresholds)[2] == "text: the embedded calibration text\n"
    expected = minillm.calibrate(model, tiny.STORIES[:2], "dhar", 0.5)
    assert minillm.Thresholds.load(thresholds).layers == expected.layers
    assert "note" not in stand_in("perplexity", "--thresholds", thresholds)[2]  # calibration and test are disjoint
    assert (
        "note" in stand_in("perplexity", "--thresholds", thresholds, "--text", tmp_path / "text" / "calibration.txt")[2]
    )

    def sweep(*options):
        rows = json.loads(stand_in("sweep", "--policy", "mid", "--sparsity", "0.5", "--json", *options)[1])["rows"]
        return rows[0]["nll"], rows[1]["level"], rows[1]["neuron_sparsity"]

    embedded, calibrated, split = sweep(), sweep("--calibration", file), sweep("--text", file)
    assert embedded[0] == calibrated[0] == minillm.perplexity(model, tiny.STORIES[2:]).nll
    assert embedded[2] != calibrated[2] and split[0] == minillm.perplexity(model, ["A dog.\nThe sea."]).nll
    assert stand_in("generate", "-p", "a", "-n", "2")[0] == stand_in("trace")[0] == stand_in("inspect")[0] == 0
    assert "Natural sparsity" in stand_in("inspect", "--natural")[1]


# ---- what is shipped -------------------------------------------------------------------------------------------------


@every_model
def test_an_embedded_model_is_stored_in_bf16_within_its_size_and_loads(name):
    folder = embedded_model(name)
    assert {tensor.dtype for tensor in checkpoint_tensors(folder).values()} == {"BF16"}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= (4e6 if name == "default" else 1e6)
    model = load(name)
    assert model.name == name and model.config.tie_word_embeddings
    act = "silu" if name == "default" else name.removeprefix("default-")
    assert model.config.hidden_act.removesuffix("_pytorch_tanh") == act
    assert (folder / "tokenizer.json").read_bytes() == (DATA / "default" / "tokenizer.json").read_bytes()


@the_default
def test_the_default_model_has_layers_to_look_ahead_over_and_whole_blocks_of_neurons(name):
    config = load(name).config
    assert config.num_hidden_layers >= 6 and config.intermediate_size % 32 == 0
    assert config.max_position_embeddings == 512 and config.num_key_value_heads < config.num_attention_heads
    assert 1e6 <= sum(load(name).parameters.values()) <= 2e6
    assert {path.name for path in embedded_model(name).iterdir()} >= {"README.md", "generation_config.json"}


@the_default
def test_the_texts_share_no_document_and_hold_enough_tokens(name):
    texts = {text: embedded_text(text) for text in ("calibration", "test")}
    first, second = (set(document_hashes(text)) for text in texts.values())
    assert not first & second
    for text, needed in (("calibration", flags_module.DEMO_CALIBRATION), ("test", flags_module.DEMO_TOKENS)):
        assert sum(len(run.ids) - run.unscored for run in runs(load(name), texts[text])) >= needed


@the_default
@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(text="  two spaces, then one more ")
@example(text="\u2581 is not a space\u2581")
@example(text="</s><s><unk> <0x41>\x00\r\n\t\n\n ")
@example(text="👩‍👩‍👧 e\u0301 \U0010ffff\ufffd")
@example(text="Once upon a time, there was a cat.\n\nThe end.")
def test_the_tokenizer_gives_back_any_text_as_it_was(name, text):
    tokenizer = load(name).tokenizer
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.encode(text, bos=False) == ids[1:]
    stream = tokenizer.stream()
    if not text.endswith("\ufffd"):  # which a stream holds back as a character that may still be incomplete
        assert "".join(map(stream.push, ids)) == text


@every_model
def test_the_greedy_continuation_is_words_and_the_same_each_time(name):
    model = load(name)
    ids = model.tokenizer.encode(PROMPT)
    text, again = ("".join(step.text for step in minillm.generate(model, ids, 60)) for _ in range(2))
    assert text == again and set(text) <= set(string.ascii_letters + " \n.,!?'\"-:;")
    words = re.findall(r"[A-Za-z']+", text)
    assert len(words) > 20 and len(set(words)) > 12  # not one word over and over
    assert max(map(len, words)) < 16


OPENINGS = (
    "Once upon a time",
    "One day, a little boy named Tom",
    "Lily had a red ball.",
    "The dog and the cat",
    "Ben and Mia went to the park.",
    "There was a big, green frog",
    "Sara likes to draw.",
    'Mom said, "',
    "In the forest there lived",
    "It was a cold day.",
)


def fours(text: str) -> list[tuple[str, ...]]:
    """All runs of four words, with one name for all children."""
    names = {*write_stories.GIRLS, *write_stories.BOYS}
    words = ["(name)" if word in names else word.lower() for word in re.findall(r"[A-Za-z']+", text)]
    return [tuple(words[i : i + 4]) for i in range(len(words) - 3)]


@pytest.fixture(scope="module")
def plots() -> set[tuple[str, ...]]:
    """What is said, four words at a time, in 3,000 of the stories that the default model learnt to tell."""
    grammar = write_stories.Grammar(write_stories.GRAMMAR.with_name("training_grammar.txt").read_text(encoding="utf-8"))
    return {four for story in islice(write_stories.series(grammar), 3000) for four in fours(story)}


@pytest.mark.slow
@the_default
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6, "top_p": 0.9}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("opening", OPENINGS)
def test_a_story_goes_on_keeps_its_names_and_has_a_thread(name, opening, sampling, plots):
    """A text that circles says eight words again that it has said; one that lost its thread says, four words at a time,
    what no story does that the model learnt to tell (whole ones: 0.86 and more of them known, broken ones 0.2 to 0.7).
    """
    model, rng = load(name), np.random.default_rng(OPENINGS.index(opening))
    steps = minillm.generate(model, model.tokenizer.encode(opening), 230, **sampling, rng=rng)
    told = "".join(step.text for step in steps)
    words = re.findall(r"[A-Za-z']+", opening + told)
    runs_of_eight = [tuple(words[i : i + 8]) for i in range(len(words) - 7)]
    assert len(words) > 100 and len(set(runs_of_eight)) > 0.95 * len(runs_of_eight), told
    inside = set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", opening + told))  # of a sentence, where only names are capital
    assert len(inside) <= 4, inside
    found = fours(opening + told)
    assert sum(four in plots for four in found) > 0.8 * len(found), told


@pytest.mark.slow
@pytest.mark.shared
@the_default
def test_the_default_model_predicts_stories_that_it_never_saw(name, shared):
    text = (shared / "text" / "tinystories-valid.txt").read_text(encoding="utf-8")
    score = minillm.perplexity(load(name), text, "documents", 512)
    assert score.bits_per_byte <= 1.15, score


@pytest.mark.shared
@pytest.mark.skipif(not MODELS, reason="there are no embedded texts")
def test_no_embedded_document_is_one_of_the_shared_texts(shared):
    ours = {h for text in ("calibration", "test") for h in document_hashes(embedded_text(text))}
    for path in (shared / "text").glob("*.txt"):
        assert not ours & set(document_hashes(path.read_text(encoding="utf-8"))), path


@pytest.mark.slow
@the_default
def test_at_half_of_the_neurons_mid_costs_least(name):
    model, calibration, test = load(name), embedded_text("calibration"), embedded_text("test")
    cost = {}
    for policy in flags.DEMO_POLICIES:
        thresholds = minillm.calibrate(model, calibration, policy, 0.5, by="neuron")
        meter = minillm.SparsityMeter()
        cost[policy] = minillm.perplexity(model, test, ffn=minillm.sparse_ffn(model, thresholds), tap=meter).perplexity
        assert meter.report().neuron_sparsity == pytest.approx(0.5, abs=0.03)
    assert min(cost, key=cost.get) == "mid", cost


@pytest.mark.parity
@every_model
def test_transformers_gives_the_same_logits_and_greedy_tokens(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(embedded_model(name), **options).eval()
    model = load(name)

    @torch.inference_mode()
    def logits(ids):
        return theirs(input_ids=torch.tensor([ids])).logits[0].numpy()

    ids = model.tokenizer.encode(embedded_text("test"))[: model.config.max_position_embeddings]
    ours, expected = model.forward(ids), logits(ids)
    assert len(ids) == 512 and np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()
    ids = model.tokenizer.encode(PROMPT)
    greedy = [step.token for step in minillm.generate(model, ids, 60, stop_at_eos=False)]
    for _ in range(60):
        ids = [*ids, int(logits(ids)[-1].argmax())]
    assert greedy == ids[-60:]


# ---- the wheel -------------------------------------------------------------------------------------------------------


def pip(python: Path, *packages: str) -> None:
    """Install into an environment; skipped where the packages cannot be had."""
    done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True)
    if done.returncode and "No matching distribution found" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr


def environment(path: Path) -> Path:
    """The python of a new, empty virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", path], check=True)
    return path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.mark.slow
def test_the_wheel_is_small_and_runs_the_demo_in_an_empty_environment(tmp_path):
    builder, empty = environment(tmp_path / "builder"), environment(tmp_path / "empty")
    pip(builder, "hatchling")
    build = [builder, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", tmp_path / "dist"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = ((tmp_path / "dist").glob(kind) for kind in ("*.whl", "*.tar.gz"))
    assert wheel.stat().st_size <= 10e6
    data = {path.relative_to(ROOT).as_posix() for path in DATA.rglob("*") if path.is_file()}
    assert data <= set(zipfile.ZipFile(wheel).namelist())
    assert data <= {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    pip(empty, str(wheel))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = shutil.which("minillm", path=str(empty.parent))
    demo = subprocess.run([command], cwd=tmp_path, env=clean, capture_output=True, text=True, encoding="utf-8")
    assert demo.returncode == 0 and demo.stdout.startswith("default: llama"), demo.stderr
    scored = int(re.search(r"Scored: ([\d,]+) tokens", demo.stdout)[1].replace(",", ""))
    assert scored >= flags_module.DEMO_TOKENS
    rows = re.findall(r"^(?:dense|dhar|cats|mid) +(?:-|neuron|tensor) ", demo.stdout, re.M)
    assert len(rows) == 12
