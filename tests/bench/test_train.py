"""The benchmark of training: what is measured, with torch and without it. No test looks at a time itself."""

import math

import pytest
import tiny

from minillm.bench import train as bench
from minillm.bench.model import model_text


def test_without_torch_our_own_step_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    steps, step = [], bench.Trainer.step
    monkeypatch.setattr(bench.Trainer, "step", lambda self: steps.append(1) or step(self))
    result = bench.bench_train(tiny.folder(tmp_path / "m"), rounds=2)
    (row,) = result["rows"]
    assert len(steps) == 3 and row["per"] == "step" and 0 < row["milliseconds"] < math.inf  # one round to warm up
    assert result["tokens_per_second"] == pytest.approx(4 * 128 * 1e3 / row["milliseconds"])
    text = model_text(result)
    assert text.startswith("train, m, 2 rounds in turns") and "tokens per second" in text


@pytest.mark.slow
@pytest.mark.parity
def test_torch_is_measured_in_both_ways_where_it_is_installed(tmp_path):
    result = bench.bench_train(tiny.folder(tmp_path / "m"), rounds=1)
    assert [row["name"] for row in result["rows"]] == ["minillm", "torch, text by text", "torch, texts joined"]
    assert "torch" in result["environment"]["transformers"]
