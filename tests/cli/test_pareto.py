"""pareto prints one page for several models, goes on from its file, draws, and refuses bad input in one sentence."""

import json

import pytest
from commands import one_sentence

from minillm.study.pareto import FAMILIES

PAGE = ("pareto", "-m", "m", "--text", "stories.txt", "--sparsity", "0.4")
WIDE = {"hidden_size": 16, "intermediate_size": 64}


@pytest.fixture(scope="module")
def wide(here):
    """A model that is wide enough for a predictor's tables to be small beside it."""
    import tiny

    return tiny.folder(here / "wide", **WIDE)


def test_a_page_is_printed_and_goes_on_from_its_file(run, wide, tmp_path):
    page = ("pareto", "-m", wide, "--text", "stories.txt", "--sparsity", "0.4")
    status, out, err = run(*page, "-o", tmp_path / "rows.csv")
    assert status == 0 and err.startswith("wide dense: perplexity")
    lines = out.splitlines()[2 : 3 + len(FAMILIES)]
    assert [line.split()[0] for line in lines] == ["family", *(family.name.split()[0] for family in FAMILIES)]
    assert "What holds of published orderings" in out and "95 % paired bootstrap over documents" in " ".join(
        out.split()
    )
    assert max(map(len, out.splitlines())) <= 100
    status, again, err = run(*page, "-o", tmp_path / "rows.csv")
    assert (status, again, err) == (0, out, "")  # all rows are there
    found = json.loads(run(*page, "-o", tmp_path / "rows.csv", "--json")[1])
    assert set(found) == {"rows", "page", "orderings", "findings"}
    assert len(found["page"]) == len(FAMILIES) and {row["family"] for row in found["rows"]} == {
        family.name for family in FAMILIES
    }


@pytest.mark.slow
def test_several_models_are_drawn_and_computed_by_two_processes(run, wide, tmp_path):
    page = ("pareto", "-m", wide, "-m", "m", "--text", "stories.txt", "--sparsity", "0.3")
    status, out, err = run(*page, "--figure", tmp_path / "f.png", "--jobs", "2")
    assert status == 0 and "figure: " in err and "Perplexity of m" in err
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert "m, dense perplexity" in out and "wide, dense perplexity" in out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--text", "empty.txt"), "empty.txt: is empty"),
        (("--text", "letter.txt"), "too few"),
        (("--text", "stories.txt", "--context", "1"), "context is 1"),
        (("--text", "stories.txt", "--sparsity", "0.97"), "its target is too high"),
        (("--text", "stories.txt", "-o", "rows.txt"), "expected .csv or .json"),
        (("--text", "stories.txt", "--figure", "f.pdf"), "expected .png or .svg"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, words, what):
    status, out, err = run("pareto", "-m", "m", *words)
    last = err.strip().splitlines()[-1]
    assert (status, out) == (1, "") and what in one_sentence(last)


def test_jobs_and_a_cluster_are_not_asked_for_at_the_same_time(run):
    assert run(*PAGE, "--jobs", "2", "--cluster", "tcp://127.0.0.1:1")[0] == 2
