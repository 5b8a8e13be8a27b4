"""The names of all intermediates, in execution order, with the equation and the source line of each.

    embed                                            ids looked up in the embedding
    blocks.{i}.resid_pre                             the stream before block i
    blocks.{i}.attn.norm | q | k | v | rot_q | rot_k | scores | pattern | z | out
    blocks.{i}.resid_mid                             the stream between attention and the feed-forward network
    blocks.{i}.mlp.norm | gate_pre | gate | up | mid | out
    blocks.{i}.resid_post                            the stream behind block i
    final_norm, logits

That is a Llama. Other families leave some of these out (``mlp.up`` without a gate, ``resid_mid`` where attention and
FFN stand side by side) or have further ones (``embed_positions``, ``attn.out_norm``): ``ModelConfig.step_names`` lists
them.

All values are those before a cut. A sparse feed-forward network adds its masks (``mlp.mask``: True where the neuron is
kept), what it read (``mlp.reads``) and the values after the cut (``mlp.mid_cut``).

``STEPS`` is the table of all steps, ``step_names`` lists those of a dense pass, ``place`` takes a name apart, and
``explain`` prints one row with the line of source that computes it. trace.py records the values.
"""

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from .errors import TraceError


class StepInfo(NamedTuple):
    """What a step is.

    dims: the letters of its dimensions ("T D"). source: the function that taps it, as "module:function".
    """

    dims: str
    equation: str
    hugging_face: str
    source: str


# One row per intermediate, in execution order: name, then the fields of StepInfo. "*" stands for the layer's number.
# T new positions, S attended positions, D hidden, F intermediate, H query heads, K key/value heads, d head size.
_EMBED, _LAST = "transformer.model:Llama.embed", "transformer.model:Llama.last_norm"
_HEAD, _ATTENTION = "transformer.model:Llama.head", "transformer.attention:attention"
_ATTEND = "transformer.attention:attend"
_BLOCK, _FFN, _MASKED = "transformer.blocks:pre_norm", "transformer.ffn:swiglu", "sparsity.masked:masked_swiglu"
_SANDWICH = "transformer.blocks:sandwich"
_DECIDED, _READS = "sparsity.masked:decide", "sparsity.spec:tap_reads"
_SELECTED, _PREDICTED = "sparsity.selected:SelectedFFN", "predictors.select:Predicted"
_IN_A_BLOCK = (
    ("resid_pre", "T D", "h", "input of model.layers.*", _BLOCK),
    ("attn.norm", "T D", "x = h / sqrt(mean(h^2) + eps) * w", "model.layers.*.input_layernorm", _BLOCK),
    ("attn.q", "T H d", "q = x W_q^T (+ b_q); Qwen3: RMS-normed per head", "self_attn.q_proj (q_norm)", _ATTENTION),
    ("attn.k", "T K d", "k = x W_k^T (+ b_k); Qwen3: RMS-normed per head", "self_attn.k_proj (k_norm)", _ATTENTION),
    ("attn.v", "T K d", "v = x W_v^T (+ b_v)", "self_attn.v_proj", _ATTENTION),
    ("attn.rot_q", "T H d", "R(position) q", "query_states after apply_rotary_pos_emb", _ATTENTION),
    ("attn.rot_k", "T K d", "R(position) k", "key_states after apply_rotary_pos_emb", _ATTENTION),
    ("attn.scores", "H T S", "q k^T / sqrt(d), before the mask", "attn_weights before the mask", _ATTEND),
    ("attn.pattern", "H T S", "softmax over S of the masked scores", "attn_weights", _ATTEND),
    ("attn.z", "T H d", "pattern v", "attn_output before o_proj (input of o_proj)", _ATTENTION),
    ("attn.out", "T D", "z W_o^T (+ b_o)", "self_attn", _ATTENTION),
    ("attn.out_norm", "T D", "norm(attn.out) (Gemma 2, OLMo 2)", "model.layers.*.post_attention_layernorm", _SANDWICH),
    ("resid_mid", "T D", "h + attn.out", "input of post_attention_layernorm", _BLOCK),
    ("mlp.norm", "T D", "x = h / sqrt(mean(h^2) + eps) * w", "model.layers.*.post_attention_layernorm", _BLOCK),
    ("mlp.scores", "T F", "what a predictor expects of each neuron", "-", _PREDICTED),
    ("mlp.mask_guess", "T F", "True where a prefetcher expects the neuron to be needed", "-", _SELECTED),
    ("mlp.mask_in_gate", "T D", "True where the gate's input is kept", "-", _DECIDED),
    ("mlp.mask_in_up", "T D", "True where up's input is kept", "-", _DECIDED),
    ("mlp.gate_pre", "T F", "g = x W_gate^T", "mlp.gate_proj", _FFN),
    ("mlp.gate", "T F", "a = act(g), act = SiLU in SwiGLU", "mlp.act_fn", _FFN),
    ("mlp.up", "T F", "u = x W_up^T", "mlp.up_proj", _FFN),
    ("mlp.mid", "T F", "m = a * u, the coefficient of each neuron", "input of mlp.down_proj", _FFN),
    ("mlp.mask_gate", "T F", "True where the gate is kept", "-", _DECIDED),
    ("mlp.mask_up", "T F", "True where up is kept", "-", _DECIDED),
    ("mlp.mask_true", "T F", "True where the neuron would be kept by its own value", "-", _SELECTED),
    ("mlp.mask", "T F", "True where the neuron is kept", "-", _MASKED),
    ("mlp.reads", "T 3", "share of the gate, up and down weights that the token reads", "-", _READS),
    ("mlp.mid_cut", "T F", "m where the neuron is kept, else 0", "-", _MASKED),
    ("mlp.out", "T D", "y = m W_down^T", "mlp.down_proj", _FFN),
    ("mlp.mask_out", "T D", "True where the output coordinate is kept", "-", _MASKED),
    ("mlp.out_norm", "T D", "norm(mlp.out) (Gemma 2, OLMo 2)", "model.layers.*.post_feedforward_layernorm", _SANDWICH),
    ("resid_post", "T D", "resid_mid + mlp.out", "output of model.layers.*", _BLOCK),
)
STEPS: dict[str, StepInfo] = {
    "embed": StepInfo("T D", "x_t = E[id_t]", "model.embed_tokens", _EMBED),
    "project_in": StepInfo("T D", "x W_in^T (OPT-350m)", "model.decoder.project_in", _EMBED),
    "embed_positions": StepInfo("T D", "x_t + P[t + 2] (OPT)", "input of model.decoder.layers.0", _EMBED),
    **{f"blocks.*.{name}": StepInfo(*info) for name, *info in _IN_A_BLOCK},
    "final_norm": StepInfo("T D", "h / sqrt(mean(h^2) + eps) * w", "model.norm", _LAST),
    "project_out": StepInfo("T E", "h W_out^T (OPT-350m)", "model.decoder.project_out", _LAST),
    "logits": StepInfo("T V", "final_norm W_head^T", "lm_head", _HEAD),
}


class Place(NamedTuple):
    """Where a step is: the layer's index, and the step's name inside the layer."""

    layer: int
    step: str


@lru_cache(maxsize=1 << 14)  # a tap is called for every value of every layer: a name that comes again costs no parsing
def place(name: str) -> Place | None:
    """The layer and the step of a full step name; None for a name outside the layers (embed, final_norm, logits).

    >>> place("blocks.3.mlp.mask")
    Place(layer=3, step='mlp.mask')
    >>> place("logits") is None
    True
    """
    found = re.fullmatch(r"blocks\.([0-9]+)\.(.+)", name)
    return Place(int(found[1]), found[2]) if found else None


NOT_OF_LLAMA = ("project_in", "embed_positions", "attn.out_norm", "mlp.out_norm", "project_out")


def step_names(num_layers: int, left_out: Collection[str] = (), added: Collection[str] = ()) -> list[str]:
    """The names of a dense forward pass with ``num_layers`` layers, in execution order.

    left_out, added: how the family's steps differ from a Llama's; names inside a layer ("mlp.up") hold for all layers.
    """
    absent = {*left_out, *NOT_OF_LLAMA} - {*added}
    inside = [name for name, *_ in _IN_A_BLOCK if not re.search(r"mask|_cut$|mlp.scores|mlp.reads", name)]
    blocks = [f"blocks.{i}.{name}" for i in range(num_layers) for name in inside if name not in absent]
    before, after = (
        [name for name in names if name not in absent]
        for names in (("embed", "project_in", "embed_positions"), ("final_norm", "project_out", "logits"))
    )
    return [*before, *blocks, *after]


def step_info(name: str) -> StepInfo | None:
    """The row of STEPS for a step's full name, or None."""
    at = place(name)
    return STEPS.get(f"blocks.*.{at.step}" if at else name)


def near_misses(name: str, names: Iterable[str]) -> str:
    """The names that are nearly this one, as the end of a sentence: "; did you mean a, b?", or ""."""
    import difflib  # here and below: what only a table or an error needs does not slow the start of every program

    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def explain(name: str) -> str:
    """Equation, dimensions, Hugging Face's name and source line of one step; TraceError for an unknown name."""
    info = step_info(name)
    if info is None:
        raise TraceError(f"{name!r} is no step{near_misses(name, STEPS)}")
    import importlib
    import inspect

    module_name, _, qualified = info.source.partition(":")
    target = importlib.import_module(f"{__package__}.{module_name}")
    file = Path(str(target.__file__)).name
    for part in qualified.split("."):
        target = getattr(target, part)
    lines, start = inspect.getsourcelines(target)
    inside = re.sub(r"^blocks\.[^.]+\.", "", name)  # the block itself taps "mlp.norm", the parts of it only "out"
    either = "|".join(re.escape(tapped) for tapped in (inside, inside.rsplit(".", 1)[-1]))
    tap = re.compile(rf'tap\w*\("(?:{either})"')  # tap("mid", ...), and tap_mask("mask_up", ...)
    hits = (f"{file}:{start + i}  {line.strip()}" for i, line in enumerate(lines) if tap.search(line))
    where = next(hits, f"{file}:{start}")
    return (
        f"{name}\n  equation      {info.equation}\n  dimensions    {info.dims}\n"
        f"  Hugging Face  {info.hugging_face}\n  source        {where}"
    )
