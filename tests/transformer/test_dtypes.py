"""A float32 model never touches a float64 array: one would turn every matrix product after it into a conversion.

Taps show the values that have a name. The others are seen by ``Watched``, an array that looks at the inputs and outputs
of every operation it enters, and makes the result a watched array too.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from golden_cases import CASES, MANIFEST

from minillm.errors import MinillmError
from minillm.sparsity.gathered import gathered_swiglu
from minillm.sparsity.masked import masked_swiglu
from minillm.sparsity.policies import POLICIES
from minillm.transformer import attention, blocks, evaluation, generation, model, ops, rope
from minillm.transformer.attention import KVCache
from minillm.transformer.ffn import swiglu
from minillm.transformer.generation import generate
from minillm.transformer.model import Llama

THRESHOLDS = {"in_gate": 0.4, "in_gate_norm": 0.4, "in_up": 0.4, "neuron_norm": 0.1}
THRESHOLDS |= {"gate_pre": 0.4, "gate": 0.2, "up": 0.4, "mid": 0.1, "out": 0.2}
FFNS = {"dense": swiglu} | {
    f"{policy} {form.__name__}": partial(form, policy=POLICIES[policy], thresholds=THRESHOLDS)
    for policy in POLICIES
    for form in (masked_swiglu, gathered_swiglu)
}


class FoundFloat64(AssertionError):
    """An operation of a float32 model took or gave a float64 array."""


class Watched(np.ndarray):
    """An array that raises FoundFloat64 when an operation on it takes or gives a float64 array.

    from_ndim: fewer dimensions than that are let pass.
    """

    from_ndim = 1

    def _check(self, what, arrays):
        for array in arrays:
            if isinstance(array, np.ndarray) and array.ndim >= self.from_ndim and array.dtype == np.float64:
                raise FoundFloat64(f"{what}: a float64 array of shape {array.shape}")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [x.view(np.ndarray) if isinstance(x, Watched) else x for x in inputs]
        if out is not None:
            kwargs["out"] = tuple(x.view(np.ndarray) if isinstance(x, Watched) else x for x in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        self._check(f"{ufunc.__name__}.{method}", (*plain, result))
        if out is not None:
            return out[0]
        return result.view(type(self)) if isinstance(result, np.ndarray) else result

    def __array_function__(self, func, types, args, kwargs):  # np.where, np.concatenate, ...
        result = super().__array_function__(func, types, args, kwargs)
        self._check(func.__name__, (result,))
        return result.view(type(self)) if isinstance(result, np.ndarray) else result


class WatchedMatrices(Watched):
    """Lets vectors pass: sums over a vocabulary are kept in float64 on purpose, one number per token."""

    from_ndim = 2


def watch(dense: Llama, kind: type = Watched) -> Llama:
    """Put every weight of a model under watch."""
    for name in ("embed_tokens", "norm", "lm_head"):
        if getattr(dense, name) is not None:  # OPT-350m has no last norm
            setattr(dense, name, getattr(dense, name).view(kind))
    dense.outer = {name: array.view(kind) for name, array in dense.outer.items()}
    for i, layer in enumerate(dense.layers):
        arrays = {name: a.view(kind) for name, a in vars(layer).items() if isinstance(a, np.ndarray)}
        dense.layers[i] = replace(layer, **arrays)
    return dense


def watched_cache(dense: Llama, capacity: int) -> KVCache:
    """A cache under watch."""
    cache = KVCache(dense.config, capacity, dense.dtype)
    for name in ("keys", "values"):
        setattr(cache, name, getattr(cache, name).view(Watched))
    cache.tables = tuple((cos.view(Watched), sin.view(Watched)) for cos, sin in cache.tables)
    return cache


def tap_dtypes(dense: Llama, ids, ffn=swiglu) -> dict[str, set]:
    """The dtypes of the steps in one pass and in chunks with a cache; masks and the account of reads apart."""
    found = {}

    def note(name, value):
        if "mask" in name:
            assert value.dtype == bool
        elif name.endswith(".reads"):
            assert value.dtype == np.float64
        else:
            found.setdefault(value.dtype.name, set()).add(name)
        return value

    dense.forward(ids, ffn=ffn, tap=note)
    cache = KVCache(dense.config, len(ids), dense.dtype)
    for start in range(0, len(ids), 5):
        dense.forward(ids[start : start + 5], cache, ffn=ffn, tap=note)
    return found


def has_up(name: str, ffn: str) -> bool:
    """Whether the FFN can run on the golden: there are policies that cut up, and models that have none."""
    gated = MANIFEST["cases"][name]["config"]["model_type"] not in ("opt", "phi", "gpt_neox")
    return gated or ffn.split()[0] not in ("dhar", "teal", "wina", "countdown")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("name", CASES)
def test_every_step_has_the_dtype_of_the_model(golden, name, ffn, dtype):
    if not has_up(name, ffn):
        with pytest.raises(MinillmError, match=f"policy {ffn.split()[0]} cuts"):
            golden(name).model(dtype).forward(golden(name).ids, ffn=FFNS[ffn])
        return
    assert list(tap_dtypes(golden(name).model(dtype), golden(name).ids, FFNS[ffn])) == [dtype]


INSIDE = [(name, ffn) for name in CASES for ffn in FFNS if has_up(name, ffn) and ffn[:5] != "topp "]  # sums in float64


@pytest.mark.parametrize(("name", "ffn"), INSIDE)
def test_no_operation_inside_a_float32_model_meets_float64(golden, name, ffn, monkeypatch):
    case = golden(name)
    dense = watch(case.model("float32"))
    assert isinstance(dense.forward(case.ids, ffn=FFNS[ffn]), Watched)
    cache = watched_cache(dense, 13)
    for start in range(0, 13, 5):
        dense.forward(case.ids[start : start + 5], cache, ffn=FFNS[ffn])
    monkeypatch.setattr(generation, "KVCache", lambda config, capacity, dtype: watched_cache(dense, capacity))
    steps = list(generate(dense, case.ids[:4], 5, stop_at_eos=False, ffn=FFNS[ffn]))
    assert len(steps) == 5


@pytest.mark.parametrize("name", CASES)
def test_weights_tables_and_caches_are_float32(golden, name):
    dense = golden(name).model("float32")
    arrays = [*dense.ends]
    arrays += [a for layer in dense.layers for a in vars(layer).values() if isinstance(a, np.ndarray)]
    cache = KVCache(dense.config, 13, dense.dtype)
    arrays += [cache.keys, cache.values, *cache.tables[0], *rope.rope_table(dense.config.rope, 13, dense.dtype)]
    arrays += [rope.rope_frequencies(dense.config.rope, 13, np.float32), dense.forward(golden(name).ids)]
    arrays += model.random_weights(dense.config, np.random.default_rng(0)).values()
    assert {array.dtype.name for array in arrays} == {"float32"}


def test_the_evaluation_of_a_float32_model_holds_no_float64_matrix(golden):
    case = golden("llama")
    nll = evaluation.token_nll(watch(case.model("float32"), WatchedMatrices), case.ids)
    assert nll.dtype == np.float64 and np.isfinite(nll).all()  # the sum over a text is double


def test_the_evaluation_check_sees_float64_logits(golden):
    dense = watch(golden("llama").model("float32"), WatchedMatrices)
    dense.lm_head = dense.lm_head.astype(np.float64)
    with pytest.raises(FoundFloat64):
        evaluation.token_nll(dense, golden("llama").ids)


@pytest.fixture
def float64_table(monkeypatch):
    """The classic: cosines and sines left in float64."""

    def table(config, length, dtype=np.float32):
        return rope.rope_table(config, length, np.float64)

    monkeypatch.setattr(attention, "rope_table", table)
    monkeypatch.setattr(blocks, "rope_table", table)


def test_a_planted_float64_table_is_found(golden, float64_table):
    case = golden("llama")
    found = tap_dtypes(case.model("float32"), case.ids)
    assert {"blocks.0.attn.rot_q", "blocks.0.attn.rot_k", "logits"} <= found["float64"]
    assert "blocks.0.attn.q" not in found["float64"]
    with pytest.raises(FoundFloat64):
        watch(case.model("float32")).forward(case.ids)


def test_float64_that_is_rounded_back_is_found(golden, monkeypatch):
    """Every step is float32 here, and yet the norm works in float64 inside: only the watch can tell."""

    def wide_norm(x, weight, eps):
        return ops.rms_norm(x.astype(np.float64), weight, eps).astype(np.float32)

    monkeypatch.setitem(model.NORMS, "rms", wide_norm)
    case = golden("llama")
    assert list(tap_dtypes(case.model("float32"), case.ids)) == ["float32"]
    with pytest.raises(FoundFloat64):
        watch(case.model("float32")).forward(case.ids)
