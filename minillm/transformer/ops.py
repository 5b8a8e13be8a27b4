"""The small functions that everything else is made of.

Each takes an array and gives an array of the same dtype: a float32 model must never touch a float64 array,
because one float64 activation turns every matrix product after it into a conversion of the whole matrix.
Where an exponential overflows, the result is its limit; what squares its input needs |x| < 1e19 in float32.
"""

import math
from collections.abc import Callable

import numpy as np

# A decorator for code whose results are looked at afterwards: NumPy's own warnings name no step (finite.py).
no_warnings = np.errstate(over="ignore", invalid="ignore", divide="ignore")


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Scale each row to root mean square 1, then by a learned weight (arXiv 1910.07467, eq. 4).

        y = x / sqrt(mean(x^2) + eps) * w

    x (..., n), weight (n,)  ->  y (..., n). The mean is over the last axis; eps stands inside the root.
    """
    n = x.shape[-1]
    if x.shape == (1, n):  # one token: a number is divided by faster than an array of one number
        y = x / math.sqrt(x[0].dot(x[0]) / n + eps)  # (1, n)
    else:
        y = x / np.sqrt(np.vecdot(x, x)[..., None] / n + eps)  # (..., n)
    y *= weight
    return y


def rms_norm_from_one(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Gemma's form of ``rms_norm``: a stored weight w stands for the factor 1 + w.  x (..., n)  ->  (..., n)."""
    return rms_norm(x, 1 + weight, eps)


def layer_norm(x: np.ndarray, weight: np.ndarray, eps: float, bias: np.ndarray | None = None) -> np.ndarray:
    """Centre each row, scale it to variance 1, then by a learned weight, and shift it (arXiv 1607.06450, eq. 4).

        y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * w + b

    x (..., n), weight and bias (n,)  ->  y (..., n).
    """
    centred = x - x.mean(axis=-1, keepdims=True)  # (..., n)
    y = rms_norm(centred, weight, eps)  # (..., n): the mean of squares of what is centred is its variance
    return y if bias is None else np.add(y, bias, out=y)


def softmax(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Normalise exponentials over the last axis.

        p_i = exp(x_i - max x) / sum_j exp(x_j - max x)

    x (..., n)  ->  p (..., n). Subtracting the maximum changes nothing in exact arithmetic and keeps exp <= 1.
    -inf means "never"; a row of nothing but -inf is not a distribution and gives NaN. out: an array to write into (x
    itself, where it is no longer needed).
    """
    p = np.subtract(x, np.maximum.reduce(x, axis=-1, keepdims=True), out=out)  # (..., n)
    np.exp(p, out=p)
    p /= np.add.reduce(p, axis=-1, keepdims=True)
    return p


def log_softmax(x: np.ndarray) -> np.ndarray:
    """The logarithm of softmax, without ever taking the logarithm of a rounded zero.

        log p_i = (x_i - max x) - log sum_j exp(x_j - max x)

    x (..., n)  ->  log p (..., n).
    """
    shifted = x - x.max(axis=-1, keepdims=True)  # (..., n)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_probability(
    logits: np.ndarray, tokens: int | np.ndarray, out: np.ndarray | None = None
) -> np.ndarray | np.floating:
    """The entry of log_softmax that belongs to one token of each row.

        log p_t = (z_t - max z) - log sum_j exp(z_j - max z)

    logits (T, V), tokens (T,)  ->  (T,) float64, so that sums over a whole text keep every digit; or logits (V,) and
    one token  ->  a number. out: an array to compute in (``logits`` itself, where they are no longer needed).
    """
    shifted = np.subtract(logits, logits.max(axis=-1, keepdims=True), out=out)  # (T, V)
    chosen = shifted[tokens] if logits.ndim == 1 else shifted[np.arange(len(logits)), tokens]  # (T,)
    np.exp(shifted, out=shifted)
    return chosen.astype(np.float64) - np.log(shifted.sum(axis=-1).astype(np.float64))


def silu(x: np.ndarray) -> np.ndarray:
    """SiLU, the "Swi" of SwiGLU (Shazeer 2020, arXiv 2002.05202).

        silu(x) = x sigmoid(x) = x / (1 + exp(-x))

    x (...)  ->  (...). Below -88 it is silu(-88) = -5e-37, zero for any sum: exp(89) would overflow a float32.
    """
    x = np.maximum(x, -88)  # (...)
    y = np.exp(-x)
    y += 1
    return np.divide(x, y, out=y)


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, 0)


def relu2(x: np.ndarray) -> np.ndarray:
    """Squared ReLU, max(x, 0)^2 (So et al. 2021, arXiv 2109.08668)."""
    y = np.maximum(x, 0)
    return y * y


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).

    gelu(x) ~ x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    """
    with np.errstate(over="ignore"):  # a cube that overflows has the right sign, and tanh(inf) = 1
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU exactly: x times the standard normal's distribution function (arXiv 1606.08415, eq. 1).

    gelu(x) = x/2 (1 + erf(x / sqrt 2))
    """
    return x * (0.5 * erfc(x * (-1 / math.sqrt(2))))


def erfc(x: np.ndarray) -> np.ndarray:
    """1 - erf(x), element by element with Python's own math.erfc, since NumPy has none.

    Slow (a Python call per element) but exact; only models with hidden_act "gelu" come here.
    """
    return np.array([math.erfc(v) for v in x.ravel().tolist()], dtype=x.dtype).reshape(x.shape)


# The norms of config.norm, as functions of (x, weight, eps).
NORMS: dict[str, Callable[..., np.ndarray]] = {
    "rms": rms_norm,
    "rms_from_one": rms_norm_from_one,
    "layer": layer_norm,
}

# Hugging Face's names of the activations that minillm runs.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": silu,
    "relu": relu,
    "relu2": relu2,
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
}
