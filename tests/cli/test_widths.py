"""No command prints a line of more than 100 columns, whatever the terminal, and no number with an exponent."""

import re

import pytest

LINES = {
    "demo": "demo -m m --text stories.txt -n 4",
    "generate": "generate -m m -p cat -n 3",
    "perplexity": "perplexity -m m --text stories.txt --thresholds limits.json",
    "inspect": "inspect -m m",
    "natural": "inspect -m m --natural --text stories.txt",
    "distributions": "inspect -m m --distributions --text stories.txt",
    "trace": "trace -m m -p cat",
    "explain": "trace --explain blocks.0.mlp.gate",
    "compare": "compare a.npz a.npz",
    "calibrate": "calibrate -m m --text stories.txt -o limits.json --policy mid --by neuron",
    "sweep": "sweep -m m -m three --text stories.txt --by neuron --sparsity 0.5",
    "train": "predict train -m m --text stories.txt --predictor shadow-4 -o p.safetensors",
    "eval": "predict eval -m m --text stories.txt --predictor static,shadow-4,refined-3,learned-ahead",
    "replay": "prefetch replay -m m --text stories.txt --tokens 40 --predictor previous-token,shadow-4",
    "drop": "prefetch replay -m m --text stories.txt --tokens 20 --miss drop --capacity 0.5",
    "table": "prefetch table -m m --text stories.txt --tokens 40 --predictor previous-token,shadow-4 --capacity 0,0.5",
    "blocks": "prefetch blocks -m m --text stories.txt --tokens 40 --groups 1,4 --sparsity 0.5,0.9",
    "activations": "activations -m m -m three --text stories.txt",
    "tuned": "prefetch tuned tuned",
    "simulate": "prefetch simulate -m m --text stories.txt -n 3 --events all",
    "bundle": "bundle -m m -o bundle --group 3",
    "real": "prefetch real bundle --text stories.txt --tokens 8 --predictor chance",
    "continued": "prefetch real bundle --calibration stories.txt -n 4",
}
BEFORE = {  # what a line needs to have been run before it
    "tuned": ["tune -m m --text stories.txt --block 4 --router 5 --steps 2 --batch 60 -o tuned"],
    "perplexity": ["calibrate"], "compare": ["trace -m m -p cat -o a.npz"], "real": ["bundle"], "continued": ["bundle"],
}  # fmt: skip


@pytest.fixture
def in_a_copy(here, tmp_path, monkeypatch):
    for name in ("m", "three", "stories.txt", "one.txt"):
        (tmp_path / name).symlink_to(here / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("terminal", ["40", pytest.param("250", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LINES)
def test_lines_fit(name, terminal, run, in_a_copy, monkeypatch):
    monkeypatch.setenv("COLUMNS", terminal)
    for before in BEFORE.get(name, []):
        assert run(*LINES.get(before, before).split())[0] == 0
    status, out, said = run(*LINES[name].split())
    assert status == 0, said
    assert max(map(len, out.splitlines())) <= 100
    assert not re.search(r"[0-9]e\+?[0-9]", out)
    assert not re.search(r"[0-9]e-[0-9]", out.replace("1e-05", "")) or name == "trace"  # eps, and means near zero


@pytest.mark.parametrize("what", ["decode", "perplexity"])
def test_speeds_fit_too(what, run, in_a_copy, monkeypatch):
    monkeypatch.setattr("minillm.bench.model.find_spec", lambda name: None)
    assert max(map(len, run("bench", what, "-m", "m", "--rounds", "1")[1].splitlines())) <= 100


def test_a_config_of_long_lists_fits(run, monkeypatch):
    long = {"field": "rope.long_factor", "value": ", ".join(["1.25"] * 160)}
    monkeypatch.setattr("minillm.study.describe.config_rows", lambda model: [long])
    status, out, said = run("inspect", "-m", "m")
    assert status == 0, said
    assert max(map(len, out.splitlines())) <= 100 and out.count("1.25") == 160
