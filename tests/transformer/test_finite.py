"""Values that are no numbers: one sentence that names the layer and the step, and never a figure."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny

from minillm.errors import ConfigError, MinillmError
from minillm.loading.config import ModelConfig
from minillm.methods.base import fit
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.select import Predicted, predicted_ffn, sparse_ffn
from minillm.predictors.workshop import Workshop
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.magnitudes import collect
from minillm.sparsity.policies import POLICIES
from minillm.sparsity.thresholds import Thresholds
from minillm.trace import Trace
from minillm.transformer.attention import KVCache
from minillm.transformer.evaluation import divergence, perplexity
from minillm.transformer.ffn import swiglu
from minillm.transformer.finite import are_numbers, problem_of
from minillm.transformer.generation import generate
from minillm.transformer.model import Llama
from minillm.transformer.rope import rope_table

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # what NumPy itself would say

# The weight that is made too large, by what, and the first step that then is no number.
BROKEN = [
    ("embed_tokens", 1e32, "embed reaches"),
    ("v_proj", 1e30, "blocks.1.resid_mid reaches"),
    ("o_proj", 1e38, "blocks.1"),
    ("gate_proj", 1e38, "blocks.1"),
    ("up_proj", 1e38, "blocks.1"),
    ("down_proj", 1e38, "blocks.1"),
    ("input_layernorm", 1e30, "blocks.1.attn.scores holds"),
    ("post_attention_layernorm", 1e30, "blocks.1.mlp.mid holds"),
    ("norm", 1e38, "logits"),
    ("lm_head", 1e38, "logits"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return tiny.loaded(tmp_path_factory.mktemp("finite") / "m", "float32", initializer_range=0.4)


def broken(model: Llama, name: str, factor: float) -> Llama:
    """The model with one weight (of layer 1) that is finite and far too large."""
    made = Llama.__new__(Llama)
    vars(made).update(vars(model))
    largest = np.float32(np.finfo(np.float32).max)
    with np.errstate(over="ignore"):
        if hasattr(made, name):
            setattr(made, name, np.clip(getattr(made, name) * np.float32(factor), -largest, largest))
        else:
            layer = model.layers[1]
            weight = np.clip(getattr(layer, name) * np.float32(factor), -largest, largest)
            made.layers = [model.layers[0], replace(layer, **{name: weight})]
    return made


def sentence_of(call) -> str:
    with pytest.raises(MinillmError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize(("name", "factor", "step"), BROKEN)
def test_the_error_names_the_first_step_that_is_no_number(model, name, factor, step):
    lost = broken(model, name, factor)
    ids = lost.tokenizer.encode("a cat")
    assert sentence_of(lambda: lost.forward(ids)).startswith(step)
    assert sentence_of(lambda: list(generate(lost, ids, 3))).startswith(step)
    assert sentence_of(lambda: perplexity(lost, tiny.STORIES)).startswith(step)
    if step != "logits":  # calibration reads no logits
        assert sentence_of(lambda: collect(lost, tiny.STORIES)).startswith(step)
        assert sentence_of(lambda: calibrate(lost, tiny.STORIES, "mid", 0.5)).startswith(step)
        assert sentence_of(lambda: fit("wanda", lost, tiny.STORIES, 0.5)).startswith(("blocks", "embed"))
    else:
        assert sentence_of(lambda: divergence(lost, tiny.STORIES, swiglu)).startswith(step)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_hides_a_value_that_is_no_number(model, policy):
    thresholds = calibrate(model, tiny.STORIES[:2], policy, 0.5)
    lost = broken(model, "post_attention_layernorm", 1e30)
    for form in ("masked",) if policy == "griffin" else ("masked", "gathered"):
        ffn = sparse_ffn(lost, thresholds, form=form)
        assert sentence_of(lambda ffn=ffn: perplexity(lost, tiny.STORIES[2:], ffn=ffn)).startswith("blocks.1.mlp")


def test_a_nan_among_the_coefficients_is_kept_by_every_policy():
    values = np.array([[0.5, np.nan, 3.0, 0.1]])
    for policy in POLICIES.values():
        if policy.comparison != "prompt":
            mask = policy.kept(policy.tensors[-1], values, {policy.tensors[-1]: 0.5}, {policy.tensors[-1]: np.ones(4)})
            assert mask is not None and mask[0, 1]


def test_heads_that_are_normed_and_outgrow_float32_are_no_zeros(tmp_path):
    lost = tiny.loaded(tmp_path / "m", "float32", model_type="qwen3")
    assert sentence_of(lambda: broken(lost, "q_proj", 1e30).forward([1, 5])).startswith("blocks.1.attn.q holds NaN")


def test_a_cache_has_not_moved_on_where_the_pass_ends_in_an_error(model):
    lost, cache = broken(model, "post_attention_layernorm", 1e30), KVCache(model.config, 8)
    model.forward([1, 5], cache)
    assert "blocks.1.mlp.mid" in sentence_of(lambda: lost.forward([7], cache))
    assert cache.length == 2
    assert np.allclose(model.forward([7], cache), model.forward([1, 5, 7])[-1:], atol=1e-4)


def test_a_trace_keeps_what_is_no_number_and_a_warning_names_it(model):
    lost = broken(model, "post_attention_layernorm", 1e30)
    with pytest.warns(UserWarning, match="blocks.1.mlp.mid holds"), Trace() as trace:
        logits = lost.forward([1, 5], tap=trace)
    assert not np.isfinite(trace["blocks.1.mlp.mid"]).all() and np.isnan(logits).all()
    trace.show()
    assert np.isfinite(trace["blocks.0.resid_post"]).all()


def test_an_edit_that_makes_nan_is_named_and_masked_scores_or_logits_are_no_fault(model):
    with pytest.warns(UserWarning, match="blocks.0.mlp.mid holds NaN"):
        model.forward([1, 5], tap=Trace(keep=(), edits={"blocks.0.mlp.mid": lambda v: v * np.float32("nan")}))

    def never(name, value):
        banned = np.full_like(value, -np.inf)
        return np.where(np.arange(value.shape[-1]) == 3, banned, value) if name == "logits" else value

    assert np.isneginf(model.forward([1, 5], tap=never)[:, 3]).all()
    assert "blocks.1.attn.z" in sentence_of(
        lambda: model.forward([1, 5], tap=lambda n, v: v * np.float32("nan") if n == "blocks.1.attn.z" else v)
    )


def test_float64_holds_what_float32_does_not(model):
    lost = broken(model, "v_proj", 1e30)
    assert "dtype float64" in sentence_of(lambda: lost.forward([1, 5]))
    layers = [
        replace(layer, **{n: a.astype(np.float64) for n, a in vars(layer).items() if isinstance(a, np.ndarray)})
        for layer in lost.layers
    ]
    lost.layers, lost.dtype = layers, np.dtype(np.float64)
    lost.embed_tokens, lost.lm_head, lost.norm = (
        a.astype(np.float64) for a in (lost.embed_tokens, lost.lm_head, lost.norm)
    )
    assert np.isfinite(lost.forward([1, 5])).all()


def test_the_parts():
    assert are_numbers(np.array([[1.0, -2.0]])) and not are_numbers(np.array([1.0, np.nan]))
    assert not are_numbers(np.array([1.0, -np.inf]))
    assert problem_of("blocks.0.mlp.mask", np.array([True])) is None
    assert problem_of("blocks.0.mlp.mid", np.array([1e30], np.float32)) is None
    assert "1e+30" in (problem_of("blocks.0.resid_mid", np.array([[1e30, 1]], np.float32)) or "")
    assert "[1, 0]" in (problem_of("logits", np.array([[1.0], [np.inf]])) or "")


# ---- files, thresholds and predictors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 1e-300},
        {"rope_scaling": {"rope_type": "linear", "factor": 1e-300}},
        {"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1e-300] * 2,
         "long_factor": [1.0] * 2}, "original_max_position_embeddings": 4},
    ],
)  # fmt: skip
def test_angles_that_are_no_numbers_are_an_error_of_the_config(fields):
    try:
        config = ModelConfig.from_dict({**tiny.LLAMA, **fields})
    except ConfigError:
        return  # refused when it was read
    with pytest.raises(ConfigError, match="rope_theta"):
        rope_table(config.rope, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_threshold_that_is_no_number_is_an_error(model, value):
    good = calibrate(model, tiny.STORIES[:2], "mid", 0.5)
    bad = replace(good, layers=({"mid": 0.1}, {"mid": value}))
    assert isinstance(bad, Thresholds) and "layers[1].mid" in sentence_of(lambda: sparse_ffn(model, bad))


def test_cutoffs_and_scores_that_are_no_numbers_are_an_error(model):
    thresholds = calibrate(model, tiny.STORIES[:2], "mid", 0.5)
    predictor = Workshop(model, thresholds, tiny.STORIES[:1], tiny.STORIES[1:2], rank=2).make("svd")
    fit_cutoffs(model, predictor, thresholds, tiny.STORIES[:1], 0.5)
    assert perplexity(model, tiny.STORIES[2:], ffn=predicted_ffn(predictor, thresholds)).perplexity > 1
    predictor.tables["gate_a"][1] = np.nan
    found = sentence_of(lambda: perplexity(model, tiny.STORIES[2:], ffn=predicted_ffn(predictor, thresholds)))
    assert found.startswith("blocks.1.mlp.scores")
    predictor.cutoffs = np.array([0.1, np.nan])
    assert "layer 1" in sentence_of(lambda: Predicted(predictor, thresholds))


def test_a_perplexity_above_every_float_is_refused_in_one_sentence(model):
    with pytest.raises(MinillmError, match="nats per token, .* expected less than 709"):
        perplexity(broken(model, "lm_head", 1e10), tiny.STORIES)


def test_what_collects_values_has_no_part_in_the_search_for_the_step(model):
    for layer_1 in (broken(model, "down_proj", 1e38), broken(model, "post_attention_layernorm", 1e30)):
        for by in ("tensor", "neuron"):
            with pytest.raises(MinillmError, match=r"blocks\.1\.mlp"):
                calibrate(layer_1, tiny.STORIES[:1], "mid", 0.5, by=by)  # its arrays have no room for a second pass
    with pytest.raises(MinillmError, match=r"blocks\.1\.mlp\.mid: an activation is not finite"):
        kept = collect(broken(model, "up_proj", 1e38), tiny.STORIES[:1], ("mid",), quantile="streaming")
        pytest.fail(f"{kept}")


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_extreme_temperatures_and_logits_draw_a_token(model, temperature):
    how = {"temperature": temperature, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "rng": np.random.default_rng(0)}
    for each in (model, broken(model, "lm_head", 1e36)):
        assert len(list(generate(each, [1, 5], 3, stop_at_eos=False, **how))) == 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["zeros", "one neuron"])
def test_weights_of_zeros_and_a_single_neuron_run_without_a_warning(tmp_path, policy, kind):
    model = tiny.loaded(tmp_path / "m", "float32", **({"intermediate_size": 1} if kind == "one neuron" else {}))
    if kind == "zeros":
        model.embed_tokens, model.lm_head = (np.zeros_like(a) for a in (model.embed_tokens, model.lm_head))
        model.layers = [
            replace(layer, **{n: a * 0 for n, a in vars(layer).items() if isinstance(a, np.ndarray)})
            for layer in model.layers
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(generate(model, [1, 5], 3, stop_at_eos=False))) == 3
        ffn = sparse_ffn(model, calibrate(model, tiny.STORIES[:2], policy, 0.5))
        score = perplexity(model, tiny.STORIES[2:], ffn=ffn).perplexity
    assert kind == "one neuron" or score == pytest.approx(tiny.VOCABULARY)


@pytest.mark.parametrize("name", ["oracle", "static", "sign", "svd", "shadow-3", "refined-3", "learned", "ahead-3"])
def test_predictors_of_weights_of_zeros_are_made_without_a_warning(tmp_path, name):
    model = tiny.loaded(tmp_path / "m", "float32")
    model.layers = [
        replace(layer, **{n: a * 0 for n, a in vars(layer).items() if isinstance(a, np.ndarray)})
        for layer in model.layers
    ]
    thresholds = calibrate(model, tiny.STORIES[:2], "mid", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = Workshop(model, thresholds, tiny.STORIES[:1], tiny.STORIES[1:2]).make(name)
        fit_cutoffs(model, predictor, thresholds, tiny.STORIES[:1], 0.5)
        assert perplexity(model, tiny.STORIES[2:], ffn=predicted_ffn(predictor, thresholds)).perplexity > 1


def test_weights_that_outgrow_the_tables_of_a_predictor_are_named(model):
    thresholds, s = calibrate(model, tiny.STORIES[:2], "mid", 0.5), np.float32(1e10)
    lost = broken(model, "norm", 1)
    lost.layers = [replace(layer, up_proj=layer.up_proj * s, down_proj=layer.down_proj / s) for layer in model.layers]
    assert perplexity(lost, tiny.STORIES).perplexity == pytest.approx(perplexity(model, tiny.STORIES).perplexity, 1e-3)
    workshop = Workshop(lost, thresholds, tiny.STORIES[:1], tiny.STORIES[1:2])
    for name in ("svd", "shadow-3", "ahead-3"):
        found = sentence_of(lambda name=name: workshop.make(name))
        assert "blocks.0.mlp.up" in found and "float16" in found


def test_a_feedforward_that_gives_nan_is_named(model):
    def ffn(x, layer, position, tap):  # as from a bundle whose file holds a NaN
        y = swiglu(x, layer, position)
        return tap("out", y * np.float32("nan") if layer.index == 1 else y)

    assert sentence_of(lambda: model.forward([1, 5], ffn=ffn)).startswith("blocks.1.mlp.out holds NaN")
