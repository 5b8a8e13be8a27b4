"""llama2.c files to a Hugging Face folder, against llama2.c's own equations, ids and texts."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import load_script

from minillm.errors import CheckpointError, MinillmError, TokenizerError
from minillm.loading.tokenizer import Tokenizer
from minillm.transformer.generation import generate
from minillm.transformer.model import Llama

SCRIPT = Path(__file__).parents[2] / "weights_scripts" / "convert_llama2c.py"
convert_llama2c = load_script(SCRIPT)

D, F, L, H, K, C = 32, 40, 2, 4, 2, 24  # sizes of the random model; C: context
WORDS = " |a|b|c|h|e|t|n|d|s|o|é|猫| t|he|in|nd| the|the| a| and|and|er|es|to| to|  |    |th|st|hes".split("|")
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
SCORES = [0.0] * 259 + [-1000.0 - i if len(word) == 1 else -float(i * 7 % 31) for i, word in enumerate(WORDS)]
V = len(PIECES)


def random_arrays(shared: bool) -> dict[str, np.ndarray]:
    """The tensors of llama2.c's run.c by its names, each over all layers."""
    rng, d = np.random.default_rng(0), D // H
    shapes = {"tok": (V, D), "rms_att": (L, D), "wq": (L, D, D), "wk": (L, K * d, D), "wv": (L, K * d, D),
              "wo": (L, D, D), "rms_ffn": (L, D), "w1": (L, F, D), "w2": (L, D, F), "w3": (L, F, D),
              "rms_final": (D,)}  # fmt: skip
    if not shared:
        shapes["wcls"] = (V, D)
    return {name: rng.standard_normal(shape).astype("<f4") * np.float32(0.3) for name, shape in shapes.items()}


def write_model(path: Path, version: int, shared: bool) -> dict[str, np.ndarray]:
    """Write a random model as export.py's legacy_export (0) or version1_export (1) does."""
    arrays = random_arrays(shared)
    sizes = (D, F, L, H, K, V if shared or version else -V, C)
    if version == 0:
        head = struct.pack("<7i", *sizes)
        order = ["tok", "rms_att", "wq", "wk", "wv", "wo", "rms_ffn", "w1", "w2", "w3", "rms_final", "tables", "wcls"]
    else:
        head = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, shared).ljust(256, b"\0")
        order = ["rms_att", "rms_ffn", "rms_final", "tok", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls"]
    tables = {"tables": np.ones(C * D // H, "<f4")}  # two of (C, d / 2); whoever uses them gets other logits
    path.write_bytes(head + b"".join((arrays | tables)[name].tobytes() for name in order if name in arrays | tables))
    return arrays


def write_tokenizer(path: Path, pieces=PIECES, scores=SCORES) -> None:
    data = struct.pack("<i", max(map(len, pieces)))
    for piece, score in zip(pieces, scores, strict=True):
        data += struct.pack("<fi", score, len(piece.encode())) + piece.encode()
    path.write_bytes(data)


def llama2c_logits(w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """run.c's forward in float64, one position after the other, with its pairing (2j, 2j + 1)."""
    w, d = {name: array.astype(np.float64) for name, array in w.items()}, D // H

    def norm(x, weight):
        return weight * x / np.sqrt(np.mean(x * x) + 1e-5)

    def turn(x, position):  # every head by the same angles
        angle = position / 10000.0 ** (np.arange(0, d, 2) / d)
        z = (x.reshape(-1, d // 2, 2) @ [1, 1j]) * np.exp(1j * angle)
        return np.stack([z.real, z.imag], -1).reshape(-1, d)

    keys, values, rows = [[] for _ in range(L)], [[] for _ in range(L)], []
    for position, token in enumerate(ids):
        x = w["tok"][token]
        for i in range(L):
            y = norm(x, w["rms_att"][i])
            q = turn(w["wq"][i] @ y, position)
            keys[i].append(turn(w["wk"][i] @ y, position))
            values[i].append((w["wv"][i] @ y).reshape(K, d))
            out = []
            for head in range(H):
                scores = np.array([k[head // (H // K)] @ q[head] for k in keys[i]]) / np.sqrt(d)
                share = np.exp(scores - scores.max())
                out.append(share / share.sum() @ np.array([v[head // (H // K)] for v in values[i]]))
            x = x + w["wo"][i] @ np.concatenate(out)
            y = norm(x, w["rms_ffn"][i])
            gate = w["w1"][i] @ y
            x = x + w["w2"][i] @ (gate / (1 + np.exp(-gate)) * (w["w3"][i] @ y))
        rows.append(w.get("wcls", w["tok"]) @ norm(x, w["rms_final"]))
    return np.array(rows)


def llama2c_encode(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """run.c's encode: BOS, a space, the characters or their bytes, then the best pair, leftmost first."""
    index = {piece: i for i, piece in enumerate(pieces)}
    ids = [index[" "]] if text else []
    for character in text:
        ids += [index[character]] if character in index else [byte + 3 for byte in character.encode()]
    while True:
        pairs = [(index.get(pieces[a] + pieces[b]), at) for at, (a, b) in enumerate(zip(ids, ids[1:], strict=False))]
        known = [(-scores[merged], at, merged) for merged, at in pairs if merged is not None]
        if not known:
            return [1, *ids]
        _, at, merged = min(known)
        ids[at : at + 2] = [merged]


@pytest.fixture
def converted(tmp_path):
    """Convert a random model; returns its arrays and the folder."""

    def make(version=0, shared=True):
        arrays = write_model(tmp_path / "model.bin", version, shared)
        write_tokenizer(tmp_path / "tok.bin")
        convert_llama2c.convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
        return arrays, tmp_path / "out"

    return make


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_the_converted_model_computes_what_llama2c_computes(converted, version, shared):
    arrays, folder = converted(version, shared)
    ids = [1, *np.random.default_rng(1).integers(0, V, C - 1).tolist()]
    expected = llama2c_logits(arrays, ids)
    model = Llama.from_folder(folder, dtype="float64")
    assert model.config.tie_word_embeddings is shared
    assert np.abs(model.forward(ids) - expected).max() < 1e-12 * np.abs(expected).max()


def test_a_pairing_left_as_it_was_would_be_seen(converted, monkeypatch):
    monkeypatch.setattr(convert_llama2c, "halves_from_interleaved", lambda weight, heads: weight)
    arrays, folder = converted()
    expected = llama2c_logits(arrays, [1, 200, 5])
    assert np.abs(Llama.from_folder(folder, dtype="float64").forward([1, 200, 5]) - expected).max() > 1e-3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_model(folder / "model.bin", 0, True)
    write_tokenizer(folder / "tok.bin")
    convert_llama2c.convert(folder / "model.bin", folder / "tok.bin", folder / "out")
    return Tokenizer.from_folder(folder / "out", V)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.one_of(st.text(" abchetndsoé猫▁<\n", max_size=40), st.text(max_size=20)))
def test_ids_are_those_of_merging_the_best_score_first(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids == llama2c_encode(text, PIECES, SCORES)
    assert tokenizer.decode(ids) == text


def test_no_text_spells_a_special_token(tokenizer):
    for text in ("<s>", "</s>", "<unk>", "\n<s>\n", "<0x41>"):
        assert tokenizer.encode(text) == llama2c_encode(text, PIECES, SCORES)


def test_the_end_of_a_story_is_the_bos_of_the_next(converted):
    assert Llama.from_folder(converted()[1]).config.eos_token_ids == (1, 2)


def patch(at: int, form: str, *values):
    return lambda data: data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]


BROKEN = {  # name: (version, a change of the bytes, a part of the sentence)
    "empty": (0, lambda data: b"", "at least 28"),
    "header only": (0, lambda data: data[:28], "expected"),
    "one byte short": (0, lambda data: data[:-1], "expected"),
    "trailing bytes": (0, lambda data: data + b"\0\0\0\0", "expected"),
    "no layers": (0, patch(8, "<i", 0), "n_layers is 0"),
    "negative dim": (0, patch(0, "<i", -4), "dim is -4"),
    "huge sizes": (0, patch(0, "<7i", *[2**31 - 1] * 7), "dim is 2147483647"),
    "terabytes": (0, patch(0, "<7i", 2**16, 2**20, 1024, 4096, 4096, 2**21, 2**24), "bytes, expected"),
    "heads that do not divide": (0, patch(12, "<2i", 5, 5), "do not fit"),
    "groups that do not divide": (0, patch(12, "<2i", 4, 3), "do not fit"),
    "an odd head": (0, patch(12, "<2i", 32, 32), "do not fit"),
    "NaN": (0, patch(28, "<f", np.nan), "NaN"),
    "int8": (1, patch(4, "<i", 2), "int8 format (version 2)"),
    "version 7": (1, patch(4, "<i", 7), "version 7"),
    "v1 header cut": (1, lambda data: data[:100], "header of 256"),
    "shared flag 9": (1, patch(36, "<B", 9), "0 or 1"),
    "v1 with untied vocabulary sign": (1, patch(28, "<i", -V), "vocab_size is"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_file_is_refused_and_nothing_is_written(tmp_path, name):
    version, change, part = BROKEN[name]
    write_model(tmp_path / "model.bin", version, True)
    write_tokenizer(tmp_path / "tok.bin")
    (tmp_path / "model.bin").write_bytes(change((tmp_path / "model.bin").read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        convert_llama2c.convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
    assert str(caught.value).startswith(str(tmp_path / "model.bin")) and part in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "tok.bin"]


BROKEN_TOKENIZERS = {
    "empty": (lambda data: b"", "ends or breaks at token 0"),
    "cut": (lambda data: data[:-1], f"token {V - 1}"),
    "trailing bytes": (lambda data: data + b"\0", "bytes, expected"),
    "negative length": (patch(8, "<i", -1), "token 0"),
    "huge length": (patch(8, "<i", 2**31 - 1), "token 0"),
    "NaN score": (patch(4, "<f", np.nan), "token 0"),
    "not UTF-8": (patch(12, "<B", 0xFF), "UTF-8"),
    "other byte tokens": (lambda data: data.replace(b"<0x41>", b"<0x99>"), "3 to 258"),
    "a piece twice": (lambda data: data.replace(b"hes", b"the"), "twice"),
}


@pytest.mark.parametrize("name", BROKEN_TOKENIZERS)
def test_a_broken_tokenizer_file_is_refused_and_nothing_is_written(tmp_path, name):
    change, part = BROKEN_TOKENIZERS[name]
    write_model(tmp_path / "model.bin", 0, True)
    write_tokenizer(tmp_path / "tok.bin")
    (tmp_path / "tok.bin").write_bytes(change((tmp_path / "tok.bin").read_bytes()))
    with pytest.raises(TokenizerError) as caught:
        convert_llama2c.convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
    assert str(caught.value).startswith(str(tmp_path / "tok.bin")) and part in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "tok.bin"]


def test_a_folder_in_use_is_left_alone(converted, tmp_path):
    (tmp_path / "out").mkdir()
    converted()  # empty: taken
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(MinillmError, match="in use"):
        converted(version=1)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_the_command_prints_the_folder_or_one_sentence(tmp_path):
    write_model(tmp_path / "model.bin", 0, True)
    write_tokenizer(tmp_path / "tok.bin")
    command = [sys.executable, str(SCRIPT), *(str(tmp_path / name) for name in ("model.bin", "tok.bin", "out"))]
    first, second = (subprocess.run(command, capture_output=True, text=True, encoding="utf-8") for _ in range(2))
    assert (first.returncode, first.stdout.strip(), first.stderr) == (0, str(tmp_path / "out"), "")
    assert (second.returncode, second.stdout) == (1, "") and second.stderr.count("\n") == 1


@pytest.fixture(scope="session")
def stories(shared, tmp_path_factory):
    """stories260K, converted, and the folder with what llama2.c gave."""
    given, out = shared / "models" / "stories260K", tmp_path_factory.mktemp("stories260K") / "out"
    convert_llama2c.convert(given / "stories260K.bin", given / "tok512.bin", out)
    return given, out


@pytest.mark.shared
def test_stories260k_gets_the_ids_of_llama2c_for_every_text_and_back(stories):
    given, folder = stories
    tokenizer = Tokenizer.from_folder(folder, 512)
    texts = json.loads((given / "encode_40_stories.json").read_text(encoding="utf-8"))
    assert len(texts) == 44
    for entry in texts:
        assert tokenizer.encode(entry["text"]) == entry["ids"]
        assert tokenizer.decode(entry["ids"]) == entry["text"]


@pytest.mark.shared
def test_stories260k_tells_the_stories_of_llama2c_character_for_character(stories):
    given, folder = stories
    model = Llama.from_folder(folder)
    for prompt, text in json.loads((given / "greedy_200_steps.json").read_text(encoding="utf-8")).items():
        ids = model.tokenizer.encode(prompt)
        steps = list(generate(model, ids, max_new_tokens=201 - len(ids)))  # 200 positions after BOS
        assert prompt + "".join(step.text for step in steps) == text


@pytest.mark.shared
@pytest.mark.parity
def test_transformers_loads_the_converted_stories260k_and_tells_the_same(stories):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    given, folder = stories
    ours = Llama.from_folder(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt, text in json.loads((given / "greedy_200_steps.json").read_text(encoding="utf-8")).items():
        ids = ours.tokenizer.encode(prompt)
        assert tokenizer(prompt)["input_ids"] == ids
        with torch.no_grad():
            out = theirs.generate(torch.tensor([ids]), max_new_tokens=201 - len(ids), do_sample=False)[0]
            logits = theirs(out[None]).logits[0].numpy()
        assert ours.tokenizer.decode(out.tolist()) == tokenizer.decode(out, skip_special_tokens=True) == text
        assert np.abs(ours.forward(out.tolist()) - logits).max() < 1e-5 * np.abs(logits).max()


@pytest.mark.parity
@pytest.mark.parametrize("shared", [True, False])
def test_transformers_computes_the_same_from_a_random_conversion(converted, shared):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    arrays, folder = converted(1, shared)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = list(range(1, C + 1))
    expected = llama2c_logits(arrays, ids)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
