"""One Llama, from token ids to logits.

    h = E[ids]
    for each block:   h = h + attention(rms_norm(h))
                      h = h + feed_forward(rms_norm(h))
    logits = rms_norm(h) W_head^T

(Touvron et al. 2023, arXiv 2302.13971: pre-normalisation, rotary positions, SwiGLU.) Mistral, Qwen2, Qwen3 and
Phi-3 are the same block with a window, biases, normed heads or fused files; the config says which. Families that are
wired otherwise (OPT, Phi-2, Pythia, Gemma, OLMo 2 and others) run here, too: loading/config.py lists what can differ,
and blocks.py the wirings.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..arguments import whole_number
from ..errors import MinillmError, TokenizerError, show
from ..identity import NAME_LIMIT, Fingerprint
from ..loading.checkpoint import load_weights
from ..loading.config import ModelConfig
from ..loading.names import EMBEDDING, HEAD
from ..loading.tokenizer import Tokenizer, unused_bos
from ..threads import look, with_few_threads
from ..trace import Tap, Trace, no_tap, scoped
from .attention import KVCache
from .blocks import Positions, block, positions_of
from .ffn import FeedForward, swiglu
from .fingerprint import fingerprint_of
from .finite import are_numbers, first_problem, problem_of, report, rows_are_numbers
from .layer import Layer
from .linear import linear
from .ops import NORMS, no_warnings

Ids: TypeAlias = Sequence[int] | np.ndarray  # (T,), whole numbers from 0 to V - 1
# Weights outside the layers that a Llama does not have.
POSITIONS, IN, OUT = (f"model.{name}.weight" for name in ("embed_positions", "project_in", "project_out"))
NORM_BIAS, HEAD_BIAS = "model.norm.bias", "lm_head.bias"
OUTER = (POSITIONS, IN, OUT, NORM_BIAS, HEAD_BIAS)
PARTS = {
    "embed": "embedding",
    "project": "embedding",
    ".self_attn.": "attention",
    ".mlp.": "ffn",
    "norm": "norms",
    "lm_head": "head",
}


class Llama:
    """A model: its config, its weights, and the pass from ids to logits.

    config, weights: what ``load_weights`` gives (or ``random_weights``); nothing is copied.
    folder: where it came from, for its tokenizer and its name.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, np.ndarray], folder: Path | None = None):
        self.config, self.folder = config, folder
        self.embed_tokens = weights[EMBEDDING]  # (V, D)
        self.layers = [Layer.from_weights(config, weights, i) for i in range(config.num_hidden_layers)]
        self.norm = weights.get("model.norm.weight")  # (D,); OPT-350m has none
        self.lm_head = weights.get(HEAD, self.embed_tokens)  # (V, D); tied heads share the embedding
        self.outer = {name: weights[name] for name in OUTER if name in weights}  # of families that are no Llama
        self.dtype = self.embed_tokens.dtype
        self.bos: tuple[int, ...] | None = None  # what stands before every text, where ``use_bos`` has said it
        look()  # at BLAS, before anything limits it

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: str | type = "float32") -> Llama:
        """Load a Hugging Face folder (config.json and safetensors) as float32 or float64.

        Raises ConfigError and CheckpointError, in one sentence each, for anything that cannot be run as it is.
        """
        if dtype not in ("float32", "float64", np.float32, np.float64):
            raise MinillmError(f"dtype {dtype} is not supported, expected float32 or float64")
        folder = Path(folder)
        config = ModelConfig.from_folder(folder)
        return cls(config, load_weights(folder, config, np.dtype(dtype)), folder)

    @property
    def name(self) -> str:
        """The folder's name, or org/name for a folder of the hub's cache; for tables and files, so safe to print."""
        if self.folder is None:
            return f"random {self.config.model_type}"
        repository, kind = ("", "", *self.folder.absolute().parts)[-3:-1]
        if kind == "snapshots":  # models--org--name/snapshots/REVISION
            return show(repository.removeprefix("models--").replace("--", "/"))
        return show(show(self.folder.resolve().name), NAME_LIMIT)  # escapes lengthen it

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Of the config and some weights: what files made from this model carry. Read when it is first asked for."""
        return fingerprint_of(self.name, self.config, self.ends, self.layers)

    @property
    def ends(self) -> tuple[np.ndarray, ...]:
        """All weights outside the layers: embedding (V, D), last norm (D,), head (V, D), and what a Llama has not."""
        norm = () if self.norm is None else (self.norm,)
        return (self.embed_tokens, *norm, self.lm_head, *self.outer.values())

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder holds a tokenizer.json."""
        return self.folder is not None and (self.folder / "tokenizer.json").is_file()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer, read when it is first asked for. Raises TokenizerError where there is none."""
        if self.folder is None:
            raise TokenizerError("this model was not loaded from a folder, so it has no tokenizer")
        tokenizer = Tokenizer.from_folder(self.folder, self.config.vocab_size)
        if self.bos is not None:
            tokenizer.bos_ids = self.bos
        elif note := unused_bos(self.folder, tokenizer, self.config.bos_token_id):
            warnings.warn(note, stacklevel=2)
        return tokenizer

    def use_bos(self, bos: int | None) -> None:
        """Put this id in front of every text, or nothing (None), whatever the files say. Raises MinillmError."""
        most = self.config.vocab_size - 1
        self.bos = () if bos is None else (whole_number("bos", bos, 0, most),)
        if "tokenizer" in self.__dict__:  # it was read already
            self.tokenizer.bos_ids = self.bos

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of weights of each part: embedding, attention, ffn, norms, head (0 when tied)."""
        count = dict.fromkeys(PARTS.values(), 0)
        for name, shape in self.config.weight_shapes().items():
            count[part_of(name)] += math.prod(shape)
        return count

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The arrays under the names that it was made from (``load_weights``); a tied head is the embedding."""
        named = {EMBEDDING: self.embed_tokens}
        for layer in self.layers:
            named |= layer.weights()
        if self.norm is not None:
            named["model.norm.weight"] = self.norm
        named |= self.outer
        return named if self.lm_head is self.embed_tokens else named | {HEAD: self.lm_head}

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(array.nbytes for array in self.weights.values())

    def check_ids(self, ids: Ids) -> np.ndarray:
        """Token ids as an array (T,). Raises MinillmError for an empty, nested or out-of-range sequence."""
        try:
            array = np.asarray(ids)
        except ValueError:  # lists of different lengths
            raise MinillmError("expected a list of token ids, found a nested list") from None
        if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
            raise MinillmError(f"expected a non-empty list of token ids, found {array.dtype}{list(array.shape)}")
        if array.min() < 0 or array.max() >= self.config.vocab_size:
            bad = array[(array < 0) | (array >= self.config.vocab_size)][0]
            raise MinillmError(f"token id {bad} is outside the vocabulary, expected 0 to {self.config.vocab_size - 1}")
        return array

    @with_few_threads
    @no_warnings
    def hidden(
        self, ids: Ids, cache: KVCache | None = None, ffn: FeedForward = swiglu, tap: Tap = no_tap
    ) -> np.ndarray:
        """Everything but the head: ids (T,) -> final_norm (T, D). With a cache, the ids continue what it holds.

        Raises MinillmError as ``forward`` does.
        """
        ids = self.check_ids(ids)
        self._check_whose(ffn, tap)
        if cache:
            cache.check_room(len(ids))
            if cache.keys.dtype != self.dtype:  # one float64 table would turn every product after it into float64
                raise MinillmError(f"the cache is {cache.keys.dtype}, the model {self.dtype}: expected the same dtype")
        else:
            limit = self.config.max_position_embeddings
            if len(ids) > limit:
                raise MinillmError(f"the text has {len(ids)} tokens, the model takes at most {limit}")
        positions = positions_of(self.config, len(ids), self.dtype, cache)
        h = self.stream(ids, positions, ffn, tap)  # (T, D)
        if not rows_are_numbers(h):
            # The cache has not moved on, so the same blocks give the same numbers again.
            problem = first_problem(lambda look: self.stream(ids, positions, ffn, look), tap)
            report(problem, self.dtype, tap)
        if cache:
            cache.advance(len(ids))
        return self.last_norm(h, tap)  # (T, D)

    def last_norm(self, h: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
        """The norm in front of the head: h (T, D) -> (T, D). OPT-350m has a projection (T, E) in its place."""
        if self.norm is not None:
            more = (self.outer[NORM_BIAS],) if NORM_BIAS in self.outer else ()
            h = tap("final_norm", NORMS[self.config.norm](h, self.norm, self.config.rms_norm_eps, *more))  # (T, D)
        return tap("project_out", linear(h, self.outer[OUT])) if OUT in self.outer else h

    def _check_whose(self, ffn: FeedForward, tap: Tap) -> None:
        """Warn where the FFN was made for another model (error: of another shape); a Trace learns whose it is."""
        made_for = getattr(ffn, "model", None)
        if isinstance(made_for, Fingerprint):
            made_for.check(self.fingerprint, "the sparse feed-forward network")
        if isinstance(tap, Trace) and tap.model is None:
            tap.model = self.fingerprint

    def stream(self, ids: np.ndarray, positions: Positions, ffn: FeedForward, tap: Tap) -> np.ndarray:
        """The residual stream from the embedding to behind the last block: ids (T,) -> h (T, D)."""
        h = self.embed(ids, positions.first, tap)  # (T, D)
        for layer in self.layers:
            h = block(h, layer, positions, ffn, scoped(tap, f"blocks.{layer.index}"))
        return h  # (T, D)

    def embed(self, ids: np.ndarray, first: int, tap: Tap) -> np.ndarray:
        """What goes into the first block: a row of the embedding for each id, (T,) -> (T, D).

        Gemma and Granite scale it. OPT adds a row of its table of positions: x_t = E[id_t] + P[t + 2].
        """
        h = self.embed_tokens[ids]  # (T, D)
        if self.config.embedding_scale != 1:
            h = h * self.dtype.type(self.config.embedding_scale)
        h = tap("embed", h)
        if IN in self.outer:  # (T, E) -> (T, D)
            h = tap("project_in", linear(h, self.outer[IN]))
        if POSITIONS in self.outer:
            h = tap("embed_positions", h + self.outer[POSITIONS][2 + first :][: len(ids)])  # (T, D)
        return h

    @no_warnings
    def head(self, hidden: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
        """Logits from the values of final_norm: (T, D) -> (T, V). Raises MinillmError for one that is no number."""
        logits = linear(hidden, self.lm_head, self.outer.get(HEAD_BIAS))  # (T, V)
        if self.config.logit_divisor != 1:  # Granite
            logits /= self.dtype.type(self.config.logit_divisor)
        if (cap := self.config.logit_cap) is not None:  # Gemma 2
            logits = cap * np.tanh(logits / cap)
        if not are_numbers(logits):
            report(problem_of("logits", logits) or "", self.dtype, tap)
        return tap("logits", logits)  # (T, V)

    @with_few_threads
    def forward(
        self, ids: Ids, cache: KVCache | None = None, ffn: FeedForward = swiglu, tap: Tap = no_tap
    ) -> np.ndarray:
        """Logits of the next token at each position.

            logits = rms_norm(h) W_head^T

        ids (T,)  ->  (T, V), in the model's dtype. Raises MinillmError for ids out of range or too many, and for
        values that are no numbers, with the first step that holds one (finite.py); under a Trace that is a warning.
        """
        return self.head(self.hidden(ids, cache, ffn, tap), tap)  # (T, V)


def part_of(name: str) -> str:
    """The part of a model that a weight belongs to: "model.layers.0.mlp.up_proj.weight" is of the ffn."""
    return "norms" if "norm" in name else next(part for piece, part in PARTS.items() if piece in name)


def random_weights(
    config: ModelConfig, rng: np.random.Generator, dtype=np.float32, std: float = 0.02
) -> dict[str, np.ndarray]:
    """Weights of the standard initialisation, under the names that ``load_weights`` gives; for tests and benchmarks.

    Normal with standard deviation ``std``. Norms lie around 1 and biases around 0, not on it: code that leaves one
    out gives other numbers.
    """
    weights = {}
    for name, shape in config.weight_shapes().items():
        center = np.float32("norm" in name and not name.endswith(".bias") and config.norm != "rms_from_one")
        array = rng.standard_normal(shape, dtype=np.float32)
        weights[name] = (array * np.float32(std) + center).astype(dtype, copy=False)
    return weights


def shape_of(model: Llama) -> tuple[int, int, int]:
    """(L, D, F): number of layers, hidden size, number of neurons of a layer. A predictor must have the model's."""
    config = model.config
    return config.num_hidden_layers, config.hidden_size, config.intermediate_size
