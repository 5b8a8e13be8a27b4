"""TODO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MinillmError
from ..transformer.model import Llama, shape_of

if TYPE_CHECKING:
    from .base import Predictor


def check_fits(predictor: Predictor, model: Llama) -> None:
    """Raise MinillmError when the predictor is for another number of layers, hidden size or intermediate size.

    One that reads a part of the layer itself (its own gate, say) is given the model here: it has a method attach.
    """
    if tuple(predictor.shape) != shape_of(model):
        found = f"the predictor {predictor.name} is for (layers, hidden, intermediate) {tuple(predictor.shape)}"
        raise MinillmError(f"{found}, the model has {shape_of(model)}: it belongs to another model")
    if hasattr(predictor, "attach"):
        predictor.attach(model)
