"""How a predictor is measured: its selected neurons against the active ones (the mask of policy mid).

Over the (token, neuron) pairs of a layer, S selected and A active:

    recall |S & A| / |A|    precision |S & A| / |S|    F1 = 2 |S & A| / (|S| + |A|)    IoU |S & A| / |S or A|

pooled over the tokens of a layer, then averaged over layers. For two independent masks with half of the neurons each,
recall and precision are 1/2 and IoU is 1/3: this is the score of chance.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from ..errors import MinillmError
from ..steps import place


class PredictionMeter:
    """A tap that counts a predicted FFN's masks against the true ones; ``report()`` gives the metrics.

    Every position counts, the BOS included.
    """

    def __init__(self) -> None:
        self._count: dict[int, Counter[str]] = defaultdict(Counter)
        self._true: dict[int, np.ndarray] = {}

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if (at := place(name)) is None:
            return value
        if at.step == "mlp.mask_true":
            self._true[at.layer] = value  # the layer's mask is the next step
        elif at.step == "mlp.mask" and (true := self._true.pop(at.layer, None)) is not None:
            count = self._count[at.layer]
            count["both"] += int(np.count_nonzero(value & true))
            count["selected"] += int(np.count_nonzero(value))
            count["true"] += int(np.count_nonzero(true))
            count["pairs"] += value.size
        return value

    def layers(self) -> list[dict[str, float]]:
        """The metrics of each layer: recall, precision, f1, iou, selected, active (shares of all pairs)."""
        metrics = []
        for _, n in sorted(self._count.items()):
            either = n["selected"] + n["true"] - n["both"]
            metrics.append({
                "recall": n["both"] / max(1, n["true"]),
                "precision": n["both"] / max(1, n["selected"]),
                "f1": 2 * n["both"] / max(1, n["selected"] + n["true"]),
                "iou": n["both"] / max(1, either),
                "selected": n["selected"] / n["pairs"],
                "active": n["true"] / n["pairs"],
            })  # fmt: skip
        return metrics

    def report(self) -> dict[str, float]:
        """The mean over layers of each metric. Raises MinillmError where no mask came with mask_true."""
        layers = self.layers()
        if not layers:
            raise MinillmError("no predicted mask came with mask_true, expected a predicted FFN in masked form")
        return {key: float(np.mean([layer[key] for layer in layers])) for key in layers[0]}
