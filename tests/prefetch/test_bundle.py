"""A folder of bundles gives back what was written, is valid safetensors, is written whole, and refuses what is not."""

import json
import shutil
import struct
from dataclasses import replace

import fuzz
import hostile
import numpy as np
import pytest
import tiny
from safetensors import safe_open

from minillm.errors import BundleError, ConfigError, MinillmError
from minillm.loading.config import ModelConfig
from minillm.loading.tensors import read_header, save_tensors, to_bfloat16
from minillm.predictors.select import sparse_ffn
from minillm.prefetch import bundle as module
from minillm.prefetch.bundle import (
    bundled,
    open_bundle,
    read_layer,
    resident_llama,
    unbundled,
    whole_llama,
    write_bundle,
    write_random_bundle,
)
from minillm.prefetch.reader import BundleReader
from minillm.sparsity.calibrate import calibrate
from minillm.transformer.model import Llama, random_weights

F = 12  # of tiny.folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return tiny.loaded(tmp_path_factory.mktemp("source") / "model", "float32")


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    return write_bundle(model, tmp_path_factory.mktemp("made") / "bundle", group=5)


@pytest.fixture
def folder(tmp_path, made):
    """A good bundle of five neurons per block, to be spoilt: blocks of 5, 5 and a shorter last one of 2."""
    return shutil.copytree(made, tmp_path / "folder")


def family_folder(path, family):
    """A folder of any family; Phi-3's weights are fused as its files have them."""
    fields = {**tiny.LLAMA, **tiny.FAMILIES[family]}
    config = ModelConfig.from_dict(fields)
    arrays = random_weights(config, np.random.default_rng(1))
    if family == "phi3":
        for i in range(config.num_hidden_layers):
            for prefix, fused, parts in (("self_attn", "qkv", "qkv"), ("mlp", "gate_up", ("gate", "up"))):
                names = [f"model.layers.{i}.{prefix}.{part}_proj.weight" for part in parts]
                whole = np.concatenate([arrays.pop(name) for name in names])
                arrays[f"model.layers.{i}.{prefix}.{fused}_proj.weight"] = whole
    path.mkdir()
    (path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    save_tensors(path / "model.safetensors", arrays)
    return path


def test_the_order_of_the_rows_written_out_by_hand():
    gate, up = np.arange(10.0).reshape(5, 2), 100 + np.arange(10.0).reshape(5, 2)
    down = 200 + np.arange(10.0).reshape(2, 5)
    rows = bundled(gate, up, down, 2)
    for b, js in enumerate([(0, 1), (2, 3), (4,)]):
        expected = [gate[j] for j in js] + [up[j] for j in js] + [down[:, j] for j in js]
        assert np.array_equal(rows[6 * b : 6 * b + len(expected)], expected)
    assert len(rows) == 15


@pytest.mark.parametrize("group", [1, 2, 5, 11, 12, 32])
def test_unbundled_undoes_bundled(group):
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((12, 3)), rng.standard_normal((12, 3)), rng.standard_normal((3, 12))
    for found, expected in zip(unbundled(bundled(*matrices, group), group), matrices, strict=True):
        assert np.array_equal(found, expected)


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 5, 12])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_float32_bundle_gives_back_every_weight_bit_for_bit(tmp_path, family, group):
    source = family_folder(tmp_path / "model", family)
    model = Llama.from_folder(source)
    bundle = open_bundle(write_bundle(source, tmp_path / "bundle", group))
    assert (bundle.group, bundle.dtype, bundle.config) == (group, "float32", model.config)
    resident = resident_llama(bundle)
    for layer, back in zip(model.layers, resident.layers, strict=True):
        for found, name in zip(read_layer(bundle, layer.index), ("gate", "up", "down"), strict=True):
            assert found.tobytes() == np.ascontiguousarray(getattr(layer, f"{name}_proj")).tobytes()
        for name in vars(layer):
            value = getattr(layer, name)
            if isinstance(value, np.ndarray) and name not in ("gate_proj", "up_proj", "down_proj"):
                assert np.array_equal(getattr(back, name), value), name
    assert np.array_equal(resident.embed_tokens, model.embed_tokens)
    assert np.array_equal(resident.lm_head, model.lm_head) and np.array_equal(resident.norm, model.norm)


def test_the_model_of_a_bundle_keeps_its_tokenizer_and_config_and_fails_at_once_without_a_fetching_ffn(folder, model):
    resident = resident_llama(open_bundle(folder))
    assert resident.tokenizer.encode("a cat") == model.tokenizer.encode("a cat")
    assert (folder / "config.json").read_bytes() == (model.folder / "config.json").read_bytes()
    with pytest.raises(ValueError):
        resident.forward([1, 2])


def test_a_bfloat16_bundle_reads_back_rounded_and_is_half_as_large(tmp_path, model):
    bundle = open_bundle(write_bundle(model, tmp_path / "bundle", 5, "bfloat16"))
    for layer in model.layers:
        for found, name in zip(read_layer(bundle, layer.index), ("gate", "up", "down"), strict=True):
            source = np.ascontiguousarray(getattr(layer, f"{name}_proj"))
            assert np.array_equal(found, (to_bfloat16(source).astype(np.uint32) << 16).view(np.float32))
            assert 0 < np.abs(found - source).max() <= 2**-8 * np.abs(source).max()
    assert [info.dtype for info in bundle.layers] == ["BF16"] * 2
    assert bundle.neuron_bytes == 3 * 8 * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_itself_opens_every_file_and_the_data_begin_at_a_page(tmp_path, model, dtype):
    folder = write_bundle(model, tmp_path / "bundle", 5, dtype)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == ["layer-000.safetensors", "layer-001.safetensors", "rest.safetensors"]
    for name in files:
        with safe_open(folder / name, "numpy") as file:
            assert set(file.keys()) == set(read_header(folder / name))
            if name.startswith("layer"):
                assert file.get_slice("bundles").get_shape() == [3 * F, 8]
                assert read_header(folder / name)["bundles"].offset % 4096 == 0
                if dtype == "float32":
                    layer = model.layers[int(name[6:9])]
                    rows = bundled(layer.gate_proj, layer.up_proj, layer.down_proj, 5)
                    assert np.array_equal(file.get_tensor("bundles"), rows)


@pytest.mark.parametrize("group", [1, 5])
def test_the_whole_model_of_a_bundle_is_the_one_it_was_written_from(tmp_path, model, group):
    whole = whole_llama(open_bundle(write_bundle(model, tmp_path / "bundle", group)), "float64")
    source = Llama.from_folder(model.folder, "float64")
    assert np.allclose(whole.forward([1, 5, 3]), source.forward([1, 5, 3]), rtol=0, atol=1e-12)
    for ours, theirs in zip(whole.layers, source.layers, strict=True):
        for name in ("gate_proj", "up_proj", "down_proj"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_random_bundle_opens_runs_and_is_the_same_for_the_same_seed(tmp_path):
    fields = {**tiny.LLAMA, "intermediate_size": 50}
    one, two, other = (
        open_bundle(write_random_bundle(fields, tmp_path / name, 16, seed=seed))
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    logits = [whole_llama(bundle).forward([1, 2, 3]) for bundle in (one, two, other)]
    assert np.array_equal(logits[0], logits[1]) and not np.array_equal(logits[0], logits[2])
    with BundleReader(one) as reader:
        rows = np.concatenate([array.ravel() for array in reader.fetch(0, np.arange(one.blocks))])
    assert 0.01 < rows.std() < 0.03 and len(np.unique(rows)) > 1000
    with pytest.raises(BundleError, match="exists already"):
        write_random_bundle(fields, tmp_path / "one")


# ---- whose it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_from_a_bundle_is_its_source_and_its_thresholds_fit_without_a_word(tmp_path, model, dtype, recwarn):
    bundle = open_bundle(write_bundle(model, tmp_path / "bundle", 5, dtype))
    thresholds = calibrate(model, tiny.STORIES, "mid", 0.5)
    for loaded in (resident_llama(bundle), whole_llama(bundle, "float64")):
        assert loaded.fingerprint == model.fingerprint == bundle.model
    whole = whole_llama(bundle)
    whole.forward([1, 2, 3], ffn=sparse_ffn(whole, thresholds))
    assert not recwarn.list


def test_a_bundle_older_than_fingerprints_has_that_of_its_weights(folder, model, recwarn):
    fields = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    del fields["model"]
    (folder / "bundle.json").write_text(json.dumps(fields), encoding="utf-8")
    bundle = open_bundle(folder)
    assert bundle.model is None
    for loaded in (resident_llama(bundle), whole_llama(bundle)):
        assert loaded.fingerprint == replace(model.fingerprint, name="folder")
    assert not recwarn.list


def test_random_bundles_of_two_seeds_are_two_models(tmp_path):
    fields = {**tiny.LLAMA, "intermediate_size": 50}
    one, same, other = (
        open_bundle(write_random_bundle(fields, tmp_path / name, 16, seed=seed)).model
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same != other and one.shape == (2, 8, 50)


def test_no_file_is_copied_through_a_link_out_of_the_folder(tmp_path):
    source = tiny.folder(tmp_path / "model")
    (tmp_path / "secret").write_text("{}", encoding="utf-8")
    try:
        (source / "special_tokens_map.json").symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(BundleError, match=r"special_tokens_map\.json: is a link out of its folder"):
        write_bundle(source, tmp_path / "bundle", 5)
    assert not (tmp_path / "bundle").exists()


# ---- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), BundleError)]
)
def test_what_stops_the_writing_leaves_nothing_behind(tmp_path, model, monkeypatch, error, seen):
    write = module._write_layer

    def stopped(path, rows):
        write(path, rows)
        if "001" in path.name:
            raise error

    monkeypatch.setattr(module, "_write_layer", stopped)
    with pytest.raises(seen) as caught:
        write_bundle(model, tmp_path / "bundle", 5)
    assert not list(tmp_path.iterdir())
    assert seen is KeyboardInterrupt or "bundle: cannot be written (No space left on device)" in str(caught.value)


def test_a_file_size_limit_of_the_system_is_one_sentence_that_names_the_place_asked_for(tmp_path, model):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        with pytest.raises(BundleError) as caught:
            write_bundle(model, tmp_path / "bundle", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "partial" not in str(caught.value) and str(tmp_path / "bundle") in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_stays_as_it_was(tmp_path, model, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(model, folder, group=1)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_group_of_numpy_is_a_group(tmp_path, model):
    assert open_bundle(write_bundle(model, tmp_path / "bundle", np.int64(2))).group == 2


@pytest.mark.parametrize("group", [0, 13, -1, 1.0, True])
def test_a_group_out_of_range_is_refused(tmp_path, model, group):
    with pytest.raises(BundleError, match=r"group is .* 1 to 12"):
        write_bundle(model, tmp_path / "bundle", group)


def test_a_dtype_unknown_or_a_model_from_nowhere_is_refused(tmp_path, model):
    with pytest.raises(BundleError, match="expected one of float32, bfloat16"):
        write_bundle(model, tmp_path / "bundle", 5, "float16")
    with pytest.raises(BundleError, match="config.json to copy"):
        write_bundle(tiny.model(), tmp_path / "bundle", 5)


# ---- hostile folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer-000.safetensors", "layer-001.safetensors", "rest.safetensors"])
def test_a_file_cut_short_at_any_boundary_is_refused(folder, name):
    whole = (folder / name).read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    bundle_ends = range(header, len(whole), 3 * 5 * 8 * 4)
    edges = {0, 1, 7, 8, 9, header // 2, header - 1, header + 1, len(whole) - 1, *bundle_ends}
    for cut in sorted(edges):
        (folder / name).write_bytes(whole[:cut])
        with pytest.raises(BundleError, match=name):
            open_bundle(folder)
    (folder / name).write_bytes(whole + b"\0")
    with pytest.raises(BundleError, match="end of the file"):
        open_bundle(folder)
    (folder / name).write_bytes(whole)
    open_bundle(folder)


@pytest.mark.parametrize("case", hostile.REFUSED_FILES)
def test_every_file_that_is_no_safetensors_file_is_refused(folder, case):
    raw, _ = hostile.REFUSED_FILES[case]
    (folder / "layer-000.safetensors").write_bytes(raw)
    with pytest.raises(BundleError, match="layer-000"):
        open_bundle(folder)


def _config(**changes):
    def change(folder):
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**fields, **changes}), encoding="utf-8")

    return change


def _index(text=None, **changes):
    def change(folder):
        fields = {**json.loads((folder / "bundle.json").read_text(encoding="utf-8")), **changes}
        (folder / "bundle.json").write_text(json.dumps(fields) if text is None else text, encoding="utf-8")

    return change


def _layer(**tensors):
    return lambda folder: save_tensors(folder / "layer-001.safetensors", tensors)


def _gone(name):
    return lambda folder: (folder / name).unlink()


def _linked(folder):  # out of the folder
    shutil.move(folder / "layer-000.safetensors", folder.parent / "elsewhere.safetensors")
    (folder / "layer-000.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


rows = np.zeros((3 * F, 8), np.float32)
HOSTILE = {  # what was done to the folder, and what the sentence must name
    "no index": (_gone("bundle.json"), "holds no bundle.json"),
    "index is no JSON": (_index("{"), "not valid JSON"),
    "index is a list": (_index("[]"), "expected an object"),
    "index with a key twice": (_index('{"format": "minillm-bundle", "format": "x"}'), "stands twice"),
    "another format": (_index(format="gguf"), "'gguf', expected one of minillm-bundle"),
    "a later version": (_index(version=2), "version is 2, expected"),
    "group zero": (_index(group=0), "group is 0"),
    "group beyond the neurons": (_index(group=10**12), "group is 1000000000000"),
    "a key unknown": (_index(groups=5), "holds 'groups', expected only format"),
    "the model of nobody": (_index(model={}), "model is {}, expected an object of name"),
    "the model of another shape": (_index(model={"name": "m", "shape": [2, 8, 13], "sha256": "0" * 64}),
                                   r"model has the shape \[2, 8, 13\], expected \[2, 8, 12\]"),
    "group as text": (_index(group="5"), "group is '5'"),
    "another dtype than the files": (_index(dtype="bfloat16"), "is F32"),
    "dtype unknown": (_index(dtype="int8"), "dtype is 'int8'"),
    "more neurons": (_config(intermediate_size=13), r"is F32 \[36, 8\], expected F32 \[39, 8\]"),
    "fewer neurons": (_config(intermediate_size=11), r"expected F32 \[33, 8\]"),
    "a wider model": (_config(hidden_size=16), r"expected F32 \[36, 16\]"),
    "a layer more": (_config(num_hidden_layers=3), "layer-002.safetensors: is missing"),
    "a layer less": (_config(num_hidden_layers=1), "layer-001.safetensors: is beyond the 1 layers"),
    "biases that are not there": (_config(mlp_bias=True), "mlp.gate_proj.bias"),
    "a head that should be tied": (_config(tie_word_embeddings=True), "lm_head.weight"),
    "no config": (_gone("config.json"), "config.json: is missing"),
    "no such model": (_config(model_type="bert"), "model_type"),
    "a layer missing": (_gone("layer-001.safetensors"), "layer-001.safetensors: is missing"),
    "the rest missing": (_gone("rest.safetensors"), "rest.safetensors: is missing"),
    "a foreign file as layer": (_layer(weight=rows), "lacks tensor 'bundles'"),
    "a layer with more": (_layer(bundles=rows, more=rows), "holds tensor 'more'"),
    "a layer turned": (_layer(bundles=np.ascontiguousarray(rows.T)), r"is F32 \[8, 36\]"),
    "a layer of float16": (_layer(bundles=rows.astype(np.float16)), "is F16"),
    "a layer outside": (_linked, "link out of its folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_folder_that_contradicts_itself_is_refused_in_one_sentence(folder, case):
    change, named = HOSTILE[case]
    try:
        change(folder)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises((BundleError, ConfigError), match=named) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)


def valid(bundle) -> bool:
    assert 1 <= bundle.group <= 12 and bundle.dtype == "float32" and bundle.config.intermediate_size == 12
    return bundle.model is None or bundle.model.shape == (2, 8, 12)


@fuzz.examples
def test_a_broken_index_is_one_sentence_or_a_good_bundle(examples, folder):
    good = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    files = fuzz.json_files(good)
    counts = fuzz.holds(examples, files, folder / "bundle.json", lambda path: open_bundle(path.parent), valid)
    assert min(counts["accepted"], counts["refused"]) > examples / 50


def test_an_ordinary_model_folder_is_no_bundle(model):
    with pytest.raises(BundleError, match="minillm bundle"):
        open_bundle(model.folder)


def test_weights_that_are_not_finite_are_found_where_a_layer_is_read_whole(folder):
    _layer(bundles=np.full_like(rows, np.nan))(folder)
    with pytest.raises(BundleError, match="layer-001.*NaN"):
        read_layer(open_bundle(folder), 1)
    assert issubclass(BundleError, MinillmError)
