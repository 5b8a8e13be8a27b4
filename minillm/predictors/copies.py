"""Predictors that are small copies of gate and up, made from the weights without a training loop.

    svd      s_j = |act(x . g_j) (x . u_j)|  with G = A B of rank r in the gate's place, and U in up's
    shadow   the same with G, U = gate and up rounded to b bits per weight, a scale per row; see below

Both compute the whole of gate and up in small: a poor copy of the layer that says which neurons of the real one are
worth reading. quantise.py makes the copies, for the second moments H of the inputs x where they are known:

    mean_t (x_t . w - x_t . q)^2 = (w - q) H (w - q)^T        w a row of the weight, q its copy

With H the error itself is known, and a shadow can say what it expects of a neuron whose g and u it knows only up to
standard deviations e_g and e_u: the root of the expected square, taken at two points (Gauss-Hermite's rule of order 2),

    s_j^2 = (act(g + e_g)^2 + act(g - e_g)^2) / 2 * (u^2 + e_u^2)      ~ E[m_j^2]

A neuron of which little is known may be large, and missing it would cost the square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..arguments import whole_number
from ..errors import MinillmError
from ..fields import Fields
from ..threads import few_threads
from ..transformer.layer import Layer
from ..transformer.linear import linear
from ..transformer.model import Llama, shape_of
from ..transformer.ops import ACTIVATIONS, no_warnings
from .layout import ABOVE_ZERO, Layout, Shape, Table, check_shape, sizes_of
from .protocol import Predictor
from .quantise import check_table, low_rank, pack, quantise, unpack

# One layer to be copied: for "gate" and "up" the weight (F, D), the bias (F,) or None, and the variance (F,) or 0 of
# what is unknown of the product beside the rounding.
Weights = dict[str, tuple[np.ndarray, np.ndarray | None, np.ndarray | float]]


class LowRank(Predictor):
    """|act(x . g) (x . u)| with gate and up of rank r, in float16 (quantise.py, low_rank)."""

    def __init__(self, shape: tuple[int, int, int], hidden_act: str, tables: dict[str, np.ndarray]):
        layers, hidden, intermediate = shape
        self.shape, self.hidden_act, self.tables = (layers, hidden, intermediate), hidden_act, tables
        self.rank = tables["gate_b"].shape[1]
        self.name = f"svd rank {self.rank}"

    @classmethod
    def fit(cls, model: Llama, rank: int, moments: np.ndarray | None = None) -> LowRank:
        """Factor gate and up of every layer; moments (L, D, D): what second_moments gives, or None for a plain SVD."""
        if not 0 < rank <= min(shape_of(model)[1:]):
            raise MinillmError(f"rank is {rank}, expected 1 to {min(shape_of(model)[1:])}")
        tables: dict[str, list[np.ndarray]] = {}
        for layer in model.layers:
            moment = None if moments is None else moments[layer.index]
            for part in ("gate", "up"):
                with few_threads(model):
                    a, b = low_rank(getattr(layer, f"{part}_proj"), rank, moment)
                what = f"a factor of blocks.{layer.index}.mlp.{part}"
                tables.setdefault(f"{part}_a", []).append(check_table(a, what))
                tables.setdefault(f"{part}_b", []).append(check_table(b, what))
                if (bias := getattr(layer, f"{part}_bias")) is not None:
                    tables.setdefault(f"{part}_bias", []).append(bias.astype(np.float16))
        stacked = {name: np.stack(parts) for name, parts in tables.items()}
        predictor = cls(shape_of(model), model.config.hidden_act, stacked)
        predictor.model = model.fingerprint
        return predictor

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  |mid| of the copy (T, F)."""

        def product(part: str) -> np.ndarray:
            a, b = (self.tables[f"{part}_{side}"][index].astype(x.dtype) for side in "ab")
            return linear(linear(x, b), a, of_layer(self.tables, f"{part}_bias", index, x.dtype))  # (T, F)

        return np.abs(ACTIVATIONS[self.hidden_act](product("gate")) * product("up"))

    @property
    def nbytes(self) -> int:
        """Both factors of gate and up: 4 r (F + D) bytes per layer."""
        return sum(table.nbytes for table in self.tables.values())

    def multiply_adds(self, index: int) -> float:
        """2 r (F + D)."""
        _, hidden, intermediate = self.shape
        return 2 * self.rank * (intermediate + hidden)

    def arrays(self) -> dict[str, np.ndarray]:
        """The factors."""
        return self.tables

    def settings(self) -> dict:
        """Shape and activation."""
        return {"shape": self.shape, "hidden_act": self.hidden_act}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """Two factors of gate and of up, all of one rank; the biases where the model has them."""
        settings.only(["shape", "hidden_act"])
        check_shape(settings, shape)
        settings.choice("hidden_act", ACTIVATIONS)
        tables: dict[str, Table] = {}
        for part in ("gate", "up"):
            tables |= {f"{part}_a": Table("LFr"), f"{part}_b": Table("LrD"), f"{part}_bias": Table("LF", group="bias")}
        return Layout(tables, sizes_of(shape), {"r": range(1, min(shape[1:]) + 1)})

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> LowRank:
        """The predictor with these factors."""
        return cls(settings["shape"], settings["hidden_act"], arrays)


def of_layer(tables: dict[str, np.ndarray], name: str, index: int, dtype: np.dtype) -> np.ndarray | None:
    """One layer's row of a table, or None where the predictor has no such table."""
    return tables[name][index].astype(dtype) if name in tables else None


def expected_size(
    act: Callable[[np.ndarray], np.ndarray], gate_pre: np.ndarray, up: np.ndarray, gate_error: np.ndarray,
    up_error: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The root of E[m^2] of the module's docstring: gate_pre, up (T, F), their errors (F,)  ->  (T, F)."""
    square = (act(gate_pre + gate_error) ** 2 + act(gate_pre - gate_error) ** 2) / 2  # (T, F)
    return np.sqrt(square * (up * up + up_error * up_error))


class Shadow(Predictor):
    """E[m^2]^(1/2) with gate and up at b bits per weight and a float16 scale per row, stored packed.

    tables: {gate,up}_codes (L, F, ceil(D b / 8)) uint8, {gate,up}_scale (L, F) float16; where the inputs were known
    when it was made, {gate,up}_error (L, F) float16, the e of the module's docstring (else 0: the score is |m| of the
    copy); for a model with biases, {gate,up}_bias (L, F) float16.

    gate_bits 0: no copy of the gate, the layer's own is read in full (reads_gate), and only up is a copy. That reads
    what CATS reads (arXiv 2404.08763) and knows more: the neurons of a large gate whose up is small.
    """

    def __init__(
        self, shape: tuple[int, int, int], hidden_act: str, gate_bits: int, up_bits: int, tables: dict[str, np.ndarray]
    ):
        layers, hidden, intermediate = shape
        self.shape, self.hidden_act, self.tables = (layers, hidden, intermediate), hidden_act, tables
        self.bits = {"gate": gate_bits, "up": up_bits}
        self.reads_gate = gate_bits == 0
        widths = f"{up_bits}" if gate_bits == up_bits else f"{gate_bits}+{up_bits}"
        self.name = f"shadow {widths}-bit" if gate_bits else f"gate and {up_bits}-bit up"
        self._layers: list[Layer] | None = None  # the model's own
        self._unpacked: dict[tuple[str, int, np.dtype], np.ndarray] = {}  # kept for speed

    @classmethod
    def fit(cls, model: Llama, bits: int, moments: np.ndarray | None = None, gate_bits: int | None = None) -> Shadow:
        """Round gate and up of every layer to 1 to 8 bits; moments (L, D, D): what second_moments gives, or None."""
        layers: list[Weights] = [
            {part: (getattr(layer, f"{part}_proj"), getattr(layer, f"{part}_bias"), 0.0) for part in ("gate", "up")}
            for layer in model.layers
        ]
        bits = whole_number("bits", bits, 1, 8)
        gate_bits = bits if gate_bits is None else whole_number("gate_bits", gate_bits, 0, 8)
        with few_threads(model):
            predictor = cls.of_weights(shape_of(model), model.config.hidden_act, layers, gate_bits, bits, moments)
        predictor.model = model.fingerprint
        return predictor

    @classmethod
    @no_warnings
    def of_weights(
        cls, shape: tuple[int, int, int], hidden_act: str, layers: Sequence[Weights], gate_bits: int, up_bits: int,
        moments: np.ndarray | None,
    ) -> Shadow:  # fmt: skip
        """Round given weights, layer by layer: see Weights. Raises MinillmError for bits out of range."""
        if not (0 <= gate_bits <= 8 and 1 <= up_bits <= 8):
            raise MinillmError(f"bits are {gate_bits} and {up_bits}, expected 1 to 8 (of the gate: 0 for its own)")
        tables: dict[str, list[np.ndarray]] = {}
        for index, layer in enumerate(layers):
            for part, bits in (("gate", gate_bits), ("up", up_bits)):
                weight, bias, variance = layer[part]
                if bits == 0:
                    continue
                moment = None if moments is None else moments[index]
                codes, scale = quantise(weight, bits, moment)
                rounded = {"codes": pack(codes, bits), "scale": scale}
                if moment is not None:
                    missed = weight - (codes - (2**bits - 1) / 2) * scale.astype(np.float64)[:, None]  # (F, D)
                    rounded["error"] = np.sqrt(np.vecdot(missed @ moment, missed) + variance).astype(np.float16)
                if bias is not None:
                    rounded["bias"] = bias.astype(np.float16)
                for name, table in rounded.items():
                    what = f"the {name} of blocks.{index}.mlp.{part}"
                    tables.setdefault(f"{part}_{name}", []).append(check_table(table, what))
        stacked = {name: np.stack(parts) for name, parts in tables.items()}
        return cls(shape, hidden_act, gate_bits, up_bits, stacked)

    def attach(self, model: Llama) -> None:
        """Take the model, whose gate is read where there is no copy of it."""
        self._layers = model.layers

    def weight(self, part: str, index: int, dtype: np.dtype) -> np.ndarray:
        """The copy of a layer's gate or up, unpacked: scale (code - (2^b - 1) / 2), (F, D). Kept from then on."""
        if (part, index, dtype) not in self._unpacked:
            bits, hidden = self.bits[part], self.shape[1]
            codes = unpack(self.tables[f"{part}_codes"][index], bits, hidden).astype(dtype) - (2**bits - 1) / 2
            scale = self.tables[f"{part}_scale"][index].astype(dtype)
            self._unpacked[part, index, dtype] = (codes * scale[:, None]).astype(dtype)
        return self._unpacked[part, index, dtype]

    def gate_up(self, index: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The copy's gate_pre and up: x (T, D)  ->  twice (T, F)."""
        if not self.reads_gate:
            bias = of_layer(self.tables, "gate_bias", index, x.dtype)
            gate_pre = linear(x, self.weight("gate", index, x.dtype), bias)
        elif self._layers is None:
            raise MinillmError(f"the predictor {self.name} reads the model's gate, expected attach(model) before")
        else:
            gate_pre = linear(x, self._layers[index].gate_proj, self._layers[index].gate_bias)
        up_bias = of_layer(self.tables, "up_bias", index, x.dtype)
        return gate_pre, linear(x, self.weight("up", index, x.dtype), up_bias)

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  the root of the expected square of mid, or |mid| of the copy where no error is known (T, F)."""
        return self.expected(index, *self.gate_up(index, x))

    def expected(self, index: int, gate_pre: np.ndarray, up: np.ndarray) -> np.ndarray:
        """The score of each neuron from the copy's two products, twice (T, F)  ->  (T, F)."""
        act, dtype = ACTIVATIONS[self.hidden_act], up.dtype
        gate_error = of_layer(self.tables, "gate_error", index, dtype)
        up_error = of_layer(self.tables, "up_error", index, dtype)
        if up_error is None:
            return np.abs(act(gate_pre) * up)
        if gate_error is None:  # the gate is the layer's own
            return np.abs(act(gate_pre)) * np.sqrt(up * up + up_error * up_error)
        return expected_size(act, gate_pre, up, gate_error, up_error)

    @property
    def nbytes(self) -> int:
        """All tables, the codes packed; the copy unpacked for speed is not counted."""
        return sum(table.nbytes for table in self.tables.values())

    def multiply_adds(self, index: int) -> float:
        """2 F D, at few bits each; the layer's own gate counts too, though its selected rows are needed anyway."""
        _, hidden, intermediate = self.shape
        return 2 * intermediate * hidden

    def arrays(self) -> dict[str, np.ndarray]:
        """Packed codes, scales, errors."""
        return self.tables

    def settings(self) -> dict:
        """Shape, activation, bits."""
        about = {"gate_bits": self.bits["gate"], "up_bits": self.bits["up"]}
        return {"shape": self.shape, "hidden_act": self.hidden_act} | about

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """Codes and scales of the copied parts; their errors and biases, or none. g and u: bytes of a row of codes."""
        settings.only(["shape", "hidden_act", "gate_bits", "up_bits"])
        check_shape(settings, shape)
        settings.choice("hidden_act", ACTIVATIONS)
        tables, sizes = {}, sizes_of(shape)
        for part, bits in (("gate", settings.integer("gate_bits", 8, low=0)), ("up", settings.integer("up_bits", 8))):
            if bits:
                sizes[part[0]] = -(-shape[1] * bits // 8)
                tables[f"{part}_codes"] = Table(f"LF{part[0]}", ("U8",))
                tables[f"{part}_scale"] = Table("LF", low=ABOVE_ZERO)
                tables[f"{part}_error"] = Table("LF", low=0, group="error")
                tables[f"{part}_bias"] = Table("LF", group="bias")
        return Layout(tables, sizes)

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Shadow:
        """The predictor with these tables."""
        bits = settings["gate_bits"], settings["up_bits"]
        return cls(settings["shape"], settings["hidden_act"], *bits, arrays)
