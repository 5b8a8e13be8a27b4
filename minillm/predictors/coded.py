"""A copy of gate and up in 1/16 of the FFN's float32 bytes: the bits of a row are read through a sliding window.

A shadow (copies.py) gives each weight its own 3 bits, so a weight has 8 values to choose from. Here a weight is read
from the last 12 bits of its row's string, of which only 2 or 3 are new:

    bits of a row    . . . 1 0 1 1 0 0 1 0 1 1 1 0 . . .
    weight j         [state_j: 12 bits    ]                     q_j = scale VALUES[state_j]
    weight j + 1           [state_j+1: 3 bits further ]

There are 4,096 values, normally distributed and in random order. From one weight to the next, 8 of them can be reached,
and which ones depends on the bits before. So there are far more different rows than there are rows of 8 fixed values
with equal spaces, and one of them lies nearer. Finding it is the work of the encoder: it reads the row column by column
and keeps the BEAM beginnings that have cost least so far. The cost is that of compensated rounding (quantise.py): the
error of a column is spread over the columns after it, and the squares of what is spread add up to (w - q) H (w - q)^T.

(Trellis-coded quantisation: Marcellin and Fischer 1990. For language models, with a window of bits as the state: Tseng
et al. 2024, QTIP, arXiv 2406.11235. Keeping only the best beginnings: Jelinek and Anderson 1971, the M-algorithm.)

Differs from QTIP: no rotation of the weights before, and a beam where QTIP searches all states. What is known only up
to an error is treated as in a shadow, but the error is one number for each layer and not one for each row, to save
bytes: all rows miss about the same share of their scale.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from ..fields import Fields
from ..threads import few_threads
from ..transformer.linear import linear
from ..transformer.model import Llama, shape_of
from ..transformer.ops import ACTIVATIONS, no_warnings
from .copies import expected_size, of_layer
from .layout import ABOVE_ZERO, Layout, Shape, Table, check_shape, sizes_of
from .protocol import Predictor
from .quantise import best_scale, check_table, damped, pack, rounding_order, spread, unpack

WINDOW, BEAM = 12, 64  # bits that a weight is read from; beginnings kept
ROWS = 64  # encoded at once: their beginnings fit in a cache
WIDER = 1.1  # scale over the root mean square of a row: the values reach a little further than most weights
SPACE = 1 / 16  # of the FFN's float32 bytes


def _values() -> np.ndarray:
    """The values of all states: quantiles of the normal distribution in a random order that never changes."""
    normal, count = NormalDist(), 1 << WINDOW
    quantiles = [normal.inv_cdf((rank + 0.5) / count) for rank in range(count)]
    # A file's bits mean these values for ever: RandomState keeps its numbers from one NumPy to the next.
    return np.array(quantiles)[np.random.RandomState(0).permutation(count)]


VALUES = _values()


def row_bits(shape: Shape, biased: bool) -> int:
    """Bits of a row that fill SPACE: what a layer has for its gate, less what else is stored; at least 1 a weight.

    D F weights of gate, up and down, 32 bits each: half of 1/16 of them are 3 D F bits for gate, and as many for up.
    Beside the codes stand scales, biases, an error, and half of the order of the columns.

    >>> row_bits((2, 128, 384), biased=False)  # 2.85 per weight
    365
    """
    _, hidden, intermediate = shape
    space = int(SPACE * 3 * 4 * hidden * intermediate) // 2  # bytes
    rest = space - 2 * intermediate * (1 + biased) - 2 - hidden
    return min(8 * hidden, max(hidden, 8 * rest // intermediate))


def new_bits(bits: int, hidden: int) -> np.ndarray:
    """How many bits of a row's string are new at each column: as even as whole numbers allow, (D,).

    >>> new_bits(11, 4)
    array([2, 3, 3, 3])
    """
    return np.diff(np.arange(hidden + 1) * bits // hidden)


def decode(bits: np.ndarray, hidden: int) -> np.ndarray:
    """The values of rows, in units of their scale: bits (F, row bits) of 0 and 1  ->  (F, D)."""
    ends = np.cumsum(new_bits(bits.shape[1], hidden))  # (D,)
    padded = np.pad(bits, ((0, 0), (WINDOW, 0)))  # before the first bit, zeros
    windows = padded[:, ends[:, None] + np.arange(WINDOW)]  # (F, D, WINDOW): bit e of a row stands at WINDOW + e
    return VALUES[windows @ (1 << np.arange(WINDOW)[::-1])]


def encode(w: np.ndarray, bits: int, H: np.ndarray) -> np.ndarray:
    """The bits of rows that are in units of their scale: w (F, D), H (D, D), damped  ->  0 and 1, (F, bits)."""
    widths, U = new_bits(bits, w.shape[1]), spread(H, np.arange(len(H)))  # the columns as they stand
    symbols = np.concatenate([_best_symbols(w[a : a + ROWS], widths, U) for a in range(0, len(w), ROWS)])  # (F, D)
    each = [symbols[:, j] >> shift & 1 for j, width in enumerate(widths) for shift in range(width)[::-1]]
    return np.stack(each, axis=1).astype(np.uint8)


def _best_symbols(w: np.ndarray, widths: np.ndarray, U: np.ndarray) -> np.ndarray:
    """The new bits of each column, as one number: the beam search of the module's docstring, (n, D)  ->  (n, D).

    Of each beginning: its state, its cost, and ``rest``, the columns still to come with all errors spread on them.
    """
    values, rows = VALUES.astype(np.float32), np.arange(len(w))[:, None]
    rest, U = w.astype(np.float32)[:, None, :], U.astype(np.float32)  # (n, 1, D): one beginning, which is empty
    state, cost = np.zeros((len(w), 1), np.int64), np.zeros((len(w), 1), np.float32)
    steps = []
    for j, width in enumerate(widths):
        following = (state[..., None] << width | np.arange(1 << width)) % len(values)  # (n, beginnings, 2^width)
        off = ((rest[..., :1] - values[following]) / U[j, j]).reshape(len(w), -1)  # (n, beginnings 2^width)
        costs = np.repeat(cost, 1 << width, axis=1) + off**2
        best = np.argpartition(costs, min(BEAM, costs.shape[1]) - 1, axis=1)[:, :BEAM]  # (n, beam)
        parent, symbol = best >> width, best & (1 << width) - 1
        state, cost = following.reshape(len(w), -1)[rows, best], costs[rows, best]
        rest = rest[rows, parent, 1:] - off[rows, best][..., None] * U[j, j + 1 :]
        steps.append((parent, symbol))
    at, found = cost.argmin(axis=1), []
    for parent, symbol in reversed(steps):  # from the cheapest end back to its beginning
        found.append(symbol[rows[:, 0], at])
        at = parent[rows[:, 0], at]
    return np.stack(found[::-1], axis=1)


class Coded(Predictor):
    """A shadow's score from copies of gate and up that are read through a sliding window; see the module's docstring.

    tables: {gate,up}_codes (L, ceil(F row_bits / 8)) uint8, the rows one after the other; {gate,up}_scale (L, F)
    float16; {gate,up}_error (L,) float16, in units of the scale; order (L, D) uint16, in which the columns are coded
    (rounding_order); with biases, {gate,up}_bias (L, F) float16.
    """

    def __init__(self, shape: Shape, hidden_act: str, bits: int, tables: dict[str, np.ndarray]):
        layers, hidden, intermediate = shape
        self.shape, self.hidden_act, self.row_bits, self.tables = (
            (layers, hidden, intermediate),
            hidden_act,
            bits,
            tables,
        )
        self.name = f"coded {bits / hidden:.2f}-bit"
        self._decoded: dict[tuple[str, int, np.dtype], np.ndarray] = {}  # kept for speed

    @classmethod
    @no_warnings
    def fit(cls, model: Llama, moments: np.ndarray) -> Coded:
        """Encode gate and up of every layer for the inputs' moments (L, D, D), in SPACE of the float32 bytes."""
        from tqdm.auto import tqdm

        shape = shape_of(model)
        bits = row_bits(shape, model.layers[0].gate_bias is not None)
        tables: dict[str, list[np.ndarray]] = {}
        for layer in tqdm(model.layers, desc="coding", unit="layer", leave=False, delay=2, disable=None):
            moment = moments[layer.index]
            order = rounding_order(moment)
            tables.setdefault("order", []).append(order.astype(np.uint16))
            for part in ("gate", "up"):
                with few_threads(model):
                    made = _coded(getattr(layer, f"{part}_proj")[:, order], bits, moment[np.ix_(order, order)])
                if (bias := getattr(layer, f"{part}_bias")) is not None:
                    made["bias"] = bias.astype(np.float16)
                for name, table in made.items():
                    what = f"the {name} of blocks.{layer.index}.mlp.{part}"
                    tables.setdefault(f"{part}_{name}", []).append(check_table(table, what))
        stacked = {name: np.stack(parts) for name, parts in tables.items()}
        predictor = cls(shape, model.config.hidden_act, bits, stacked)
        predictor.model = model.fingerprint
        return predictor

    def weight(self, part: str, index: int, dtype: np.dtype) -> np.ndarray:
        """The copy of a layer's gate or up, decoded: (F, D). Kept from then on."""
        if (part, index, dtype) not in self._decoded:
            _, hidden, intermediate = self.shape
            bits = unpack(self.tables[f"{part}_codes"][index], 1, intermediate * self.row_bits)
            scale = self.tables[f"{part}_scale"][index].astype(np.float64)
            weight = np.zeros((intermediate, hidden), dtype)
            weight[:, self.tables["order"][index]] = decode(bits.reshape(intermediate, -1), hidden) * scale[:, None]
            self._decoded[part, index, dtype] = weight
        return self._decoded[part, index, dtype]

    def predict(self, index: int, position: int, x: np.ndarray) -> np.ndarray:
        """x (T, D)  ->  the root of the expected square of mid (T, F)."""
        products, errors = [], []
        for part in ("gate", "up"):
            bias = of_layer(self.tables, f"{part}_bias", index, x.dtype)
            products.append(linear(x, self.weight(part, index, x.dtype), bias))  # (T, F)
            errors.append((self.tables[f"{part}_scale"][index] * self.tables[f"{part}_error"][index]).astype(x.dtype))
        return expected_size(ACTIVATIONS[self.hidden_act], *products, *errors)

    @property
    def nbytes(self) -> int:
        """All tables, the codes packed; the copy decoded for speed is not counted."""
        return sum(table.nbytes for table in self.tables.values())

    def multiply_adds(self, index: int) -> float:
        """2 F D."""
        _, hidden, intermediate = self.shape
        return 2 * intermediate * hidden

    def arrays(self) -> dict[str, np.ndarray]:
        """Packed codes, scales, errors."""
        return self.tables

    def settings(self) -> dict:
        """Shape, activation, bits of a row."""
        return {"shape": self.shape, "hidden_act": self.hidden_act, "row_bits": self.row_bits}

    @classmethod
    def layout(cls, settings: Fields, shape: Shape) -> Layout:
        """The order, and of both parts codes (c bytes a layer), scales and errors; biases where the model has them."""
        settings.only(["shape", "hidden_act", "row_bits"])
        check_shape(settings, shape)
        settings.choice("hidden_act", ACTIVATIONS)
        bits = settings.integer("row_bits", 8 * shape[1], low=shape[1])
        tables = {"order": Table("LD", ("U16",), low=0, high=shape[1] - 1)}
        for part in ("gate", "up"):
            tables[f"{part}_codes"] = Table("Lc", ("U8",))
            tables[f"{part}_scale"] = Table("LF", low=ABOVE_ZERO)
            tables[f"{part}_error"] = Table("L", low=0)
            tables[f"{part}_bias"] = Table("LF", group="bias")
        return Layout(tables, sizes_of(shape) | {"c": -(-shape[2] * bits // 8)})

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: dict) -> Coded:
        """The predictor with these tables."""
        return cls(settings["shape"], settings["hidden_act"], settings["row_bits"], arrays)


def _coded(weight: np.ndarray, bits: int, moment: np.ndarray) -> dict[str, np.ndarray]:
    """The tables of one matrix (F, D); moment (D, D), its columns in the same order."""
    w, H = weight.astype(np.float64), damped(moment, weight.shape[1])
    size = np.maximum(np.sqrt(np.square(w).mean(axis=1)), 1e-4)  # (F,); float16 has no scale near 0
    found = encode(w / (WIDER * size)[:, None], bits, H)
    values = decode(found, w.shape[1])  # (F, D)
    scale = best_scale(w, values, WIDER * size, H)
    missed = w - values * scale[:, None]
    error = np.sqrt(np.vecdot(missed @ moment, missed).mean() / np.square(scale).mean())
    return {
        "codes": pack(found.reshape(-1)),
        "scale": scale.astype(np.float16),
        "error": np.asarray(error, np.float16),
    }
