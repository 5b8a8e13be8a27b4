"""One product with a weight matrix: where nearly all the time of a model goes.

    y = x W^T (+ b)          x (T, in), W (out, in): Hugging Face's orientation  ->  y (T, out)

With many rows (a prompt, a text that is scored) every weight is used T times, and BLAS, the library behind NumPy's @,
computes as fast as the processor can. With one row (a token that is generated) every weight is used once. Then the time
is that of reading W from memory, and the only question is how near a form comes to it. NumPy has two forms:

    W.dot(x)            BLAS multiplies a matrix by a vector (its function gemv)
    np.vecdot(W, x)     one product of two vectors for each row of W

They are equal up to the order of the sums. Which one is faster depends on the processor: gigabytes of W per second, one
thread, NumPy 2.4.6 with OpenBLAS 0.3.31 (``minillm bench linear`` measures the same on yours):

    W (out, in)        AMD EPYC, Zen 4                   Intel Xeon, Sapphire Rapids
                       a sum    BLAS    rows             a sum    BLAS    rows
    32000 x 288         21.7     8.4    21.0              20.2    27.2    26.2
      768 x 288         20.8    10.1    18.1              16.6    21.7    18.2
     2048 x 768         23.3    15.3    28.9              14.7    22.6    21.0
      768 x 2048        23.1    21.1    27.3              13.9    23.5    20.8
     5632 x 2048        25.1    21.3    29.8              18.8    26.8    26.8

So ``one_row`` takes BLAS where it is near the limit, and goes row by row where it is not. It decides by the kind of
processor and the size of W alone and never measures, so that one machine always gives the same digits. Neither form
copies a weight.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..threads import look

SMALL_MATRIX = 20_000  # weights; smaller ones lie in a core's own cache, and a call for each row would take longer


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Multiply by a weight matrix stored as (out, in).

        y = x W^T (+ b)

    x (T, in) or (in,), weight (out, in), bias (out,)  ->  y (T, out) or (out,).
    """
    if x.ndim == 1:
        y = one_row(x, weight)
    elif len(x) == 1:
        y = one_row(x[0], weight)[None]
    else:
        y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def one_row(x: np.ndarray, weight: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """y = W x by the form that is fast on this machine (module docstring).

    x (in,), weight (out, in)  ->  y (out,). out: an array to write it into.
    """
    if row_by_row(weight.size):
        return np.vecdot(weight, x, out=out)
    return weight.dot(x, out=out)


def row_by_row(size: int) -> bool:
    """Whether ``one_row`` takes np.vecdot for a matrix of so many weights on this machine."""
    return size > SMALL_MATRIX and blas_is_slow()


@cache
def blas_is_slow() -> bool:
    """Whether BLAS multiplies one row at half the speed of memory here: OpenBLAS on AMD's processors.

    NumPy names no processor, but it says which instructions it found. AVX512_ICL without AVX512_SPR means Zen 4 and
    later (and Intel's Ice Lake, which was not measured); OpenBLAS itself calls those before Zen 4 "Zen". All other
    machines keep BLAS: no measurement speaks against it.
    """
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    openblas = [library for library in look().libraries if library.internal_api == "openblas"]
    zen = any(getattr(library, "architecture", None) == "Zen" for library in openblas)
    return bool(openblas) and (zen or "AVX512_ICL" in found and "AVX512_SPR" not in found)
