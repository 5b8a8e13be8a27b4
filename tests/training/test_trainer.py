"""A training learns, is repeated bit for bit, survives a kill and a full disk, and copies no weights."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest
import tiny

from minillm.archive import load_archive, save_arrays
from minillm.errors import MinillmError
from minillm.training import trainer as module
from minillm.training.batches import Batches, batches_of
from minillm.training.fresh import new_model
from minillm.training.trainer import CURVE, Plan, Trainer, trainable

PLAN = Plan(steps=6, warmup=2, average=3)


@pytest.fixture
def model(tmp_path):
    return tiny.loaded(tmp_path / "model", "float32")


def trainer(model, plan=PLAN, seed=0, **options) -> Trainer:
    return Trainer(trainable(model), batches_of(model, tiny.STORIES, 40, seed), plan, **options)


def bits(trainer: Trainer) -> bytes:
    return b"".join(p.tobytes() for p in trainer.parameters.values())


# ---- learning --------------------------------------------------------------------------------------------------------


def test_a_model_from_scratch_learns_a_few_stories_by_heart(tmp_path):
    config = tiny.loaded(tmp_path / "a", "float32", hidden_size=32, intermediate_size=64).config
    made = trainer(new_model(config, 1, tmp_path / "a"), Plan(steps=60, rate=1e-2, average=0))
    made.run()
    losses = [row["loss"] for row in made.curve]
    assert losses[0] == pytest.approx(np.log(config.vocab_size), rel=0.05) and losses[-1] < losses[0] / 4
    assert list(made.curve[0]) == list(CURVE)
    assert [row["tokens"] for row in made.curve] == [40.0 * n for n in range(1, 61)]
    seconds = [row["seconds"] for row in made.curve]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_the_model_that_was_given_stays_as_it_is_and_the_copy_keeps_its_fingerprint(model):
    before = {name: w.copy() for name, w in model.weights.items()}
    made = trainer(model)
    made.run()
    assert all(np.array_equal(model.weights[name], w) for name, w in before.items())
    assert made.model.fingerprint == model.fingerprint
    assert not np.array_equal(made.model.embed_tokens, model.embed_tokens)


def test_only_the_named_parameters_are_trained(model):
    copy = trainable(model)
    names = [name for name in copy.weights if "mlp" in name]
    made = Trainer(
        copy, batches_of(model, tiny.STORIES, 40), PLAN, parameters={name: copy.weights[name] for name in names}
    )
    made.run()
    changed = {name for name, w in copy.weights.items() if not np.array_equal(w, model.weights[name])}
    assert changed == set(names)


def test_the_result_is_the_running_average_of_the_last_weights(model):
    last, mean = trainer(model, Plan(steps=4, average=0)), trainer(model, Plan(steps=4, average=100))
    seen = []
    while not last.done:
        last.step()
        seen.append(last.parameters["model.norm.weight"].copy())
    mean.run()
    np.testing.assert_allclose(mean.parameters["model.norm.weight"], np.mean(seen, axis=0), rtol=1e-6)


# ---- repeated and interrupted ----------------------------------------------------------------------------------------


def test_the_same_training_gives_the_same_weights_and_another_seed_others(model):
    made = [trainer(model, seed=seed) for seed in (0, 0, 1)]
    for each in made:
        each.run()
    assert bits(made[0]) == bits(made[1]) != bits(made[2])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_training_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(model, tmp_path, schedule):
    plan, file = Plan(steps=6, schedule=schedule, warmup=2, average=3), tmp_path / "checkpoint.npz"
    whole, first, second = (trainer(model, plan) for _ in range(3))
    whole.run()
    for _ in range(3):
        first.step()
    first.save(file)
    second.run(file)
    assert bits(second) == bits(whole)
    assert [row["loss"] for row in second.curve] == [row["loss"] for row in whole.curve]


CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
from minillm.training import trainer as module
from minillm.training.batches import batches_of
from minillm.training.trainer import Plan, Trainer, trainable
from minillm.transformer.model import Llama

folder, file, kill = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
model = Llama.from_folder(folder)
module.CHECKPOINT_SECONDS = 0  # after every step
savez, count = np.savez, 0

def dying(handle, **arrays):
    global count
    count += 1
    if kill == "writing" and count == 3:
        handle.write(b"half of a file")
        handle.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    savez(handle, **arrays)
    if kill == "between" and count == 3:
        os.kill(os.getpid(), signal.SIGKILL)

np.savez = dying
made = Trainer(trainable(model), batches_of(model, (folder / "text").read_text(), 40), Plan(steps=6, average=3))
made.run(file)
Path(sys.argv[4]).write_bytes(b"".join(p.tobytes() for p in made.parameters.values()))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("kill", ["writing", "between"])
def test_killed_and_called_again_it_ends_with_the_weights_of_an_uninterrupted_run(model, tmp_path, kill):
    (model.folder / "text").write_text("\n<|endoftext|>\n".join(tiny.STORIES))

    def child(name: str, kill: str = "") -> int:
        arguments = [model.folder, tmp_path / f"{name}.npz", kill, tmp_path / f"{name}.weights"]
        program = [sys.executable, "-c", textwrap.dedent(CHILD), *map(str, arguments)]
        return subprocess.run(program, timeout=120).returncode

    assert child("whole") == 0
    assert child("killed", kill) == -signal.SIGKILL
    steps = len(load_archive(tmp_path / "killed.npz")[0]["curve"])
    assert steps == {"writing": 2, "between": 2}[kill]
    assert child("killed") == 0
    assert (tmp_path / "killed.weights").read_bytes() == (tmp_path / "whole.weights").read_bytes()


def test_a_disk_that_fills_up_loses_no_checkpoint(model, tmp_path, monkeypatch):
    file, savez = tmp_path / "checkpoint.npz", np.savez
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0)
    written = []

    def filling(handle, **arrays):
        if len(written) == 2:
            handle.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(1)
        savez(handle, **arrays)

    monkeypatch.setattr(np, "savez", filling)
    with pytest.raises(MinillmError, match="checkpoint.npz: cannot be written .No space left"):
        trainer(model).run(file)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.npz", "model"]
    monkeypatch.setattr(np, "savez", savez)
    again, whole = trainer(model), trainer(model)
    again.run(file)
    whole.run()
    assert bits(again) == bits(whole)


def test_a_checkpoint_of_another_training_is_refused_and_says_why(model, tmp_path):
    file = tmp_path / "checkpoint.npz"
    made = trainer(model)
    made.step()
    made.save(file)
    other = tiny.loaded(tmp_path / "other", "float32", seed=5)
    for wrong, what in (
        (trainer(model, seed=1), "text is"),
        (trainer(model, Plan(steps=6, warmup=2, average=3, rate=5e-3)), "plan.rate is 0.001, expected 0.005"),
        (trainer(other), "model.name is 'model', expected other"),
    ):
        with pytest.raises(MinillmError, match=what):
            wrong.run(file)
    longer = trainer(model, Plan(steps=9, warmup=2, average=3))
    longer.run(file)  # a constant rate does not depend on the end
    assert len(longer.curve) == 9


@pytest.mark.parametrize("damage", ["comment", "curve", "missing", "shape", "more"])
def test_a_broken_checkpoint_is_refused_in_one_sentence(model, tmp_path, damage):
    file = tmp_path / "checkpoint.npz"
    made = trainer(model)
    made.step()
    made.save(file)
    arrays, comment = load_archive(file)
    if damage == "comment":
        comment = b""
    elif damage == "curve":
        arrays["curve"][0, 3] = np.nan
    elif damage == "missing":
        del arrays["m.model.norm.weight"]
    elif damage == "shape":
        arrays["m.model.norm.weight"] = np.zeros(3, np.float32)
    else:
        arrays["x"] = np.zeros(1)
    save_arrays(file, arrays, comment)
    fresh = trainer(model)
    before = bits(fresh)
    with pytest.raises(MinillmError, match="checkpoint.npz"):
        fresh.run(file)
    assert bits(fresh) == before


# ---- memory, ends, plans ---------------------------------------------------------------------------------------------


def test_a_step_makes_no_second_copy_of_the_weights():
    model = tiny.model("plain", np.float32, hidden_size=64, intermediate_size=700, num_hidden_layers=4)
    batches = Batches([np.array([1, 5, 3, 9, 2], np.int32)], 4)
    made = Trainer(model, batches, Plan(steps=9))
    made.step()
    tracemalloc.start()
    try:
        made.step()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < model.nbytes / 2, (peak, model.nbytes)


def test_minutes_end_a_training_too(model):
    made = trainer(model, Plan(minutes=1e-3))
    made.run()
    assert made.curve and made.seconds >= 0.06
    both = trainer(model, Plan(steps=2, minutes=60.0))
    both.run()
    assert len(both.curve) == 2


def test_a_rate_that_is_too_high_ends_in_one_sentence(model):
    with pytest.raises(MinillmError, match="expected (finite )?numbers"):
        trainer(model, Plan(steps=40, rate=1e30, warmup=0)).run()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "neither steps nor minutes"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.0}, "steps is 2.0"),
        ({"minutes": -1.0}, "minutes is -1.0"),
        ({"steps": 3, "rate": float("nan")}, "rate is nan"),
        ({"minutes": 1.0, "schedule": "cosine"}, "schedule is 'cosine' with steps None"),
        ({"steps": 3, "schedule": "linear"}, "schedule is 'linear'"),
    ],
)
def test_plans_that_make_no_sense_are_refused(options, what):
    with pytest.raises(MinillmError, match=what):
        Plan(**options)
