"""prefetch tuned: a folder that tune wrote is read, tabled, stored and drawn."""

import json

import tuned as made


def test_a_folder_that_tune_wrote_is_joined_with_its_speed(run, tmp_path):
    options = ("--text", "stories.txt", "--steps", "2", "--batch", "60", "--block", "4", "--router", "5")
    assert run("tune", "-m", "m", *options, "-o", tmp_path / "tuned")[0] == 0
    status, out, said = run("prefetch", "tuned", tmp_path / "tuned", "--json", "-o", tmp_path / "rows.csv")
    rows = json.loads(out)["rows"]
    assert status == 0 and "kernels.py" in said and len(rows) == 4
    assert [(row["chosen_by"], row["tuned"]) for row in rows][-1] == ("router", True)
    about = json.loads((tmp_path / "tuned" / "training.json").read_text(encoding="utf-8"))
    scores = {row["model"]: row["perplexity"] for row in about["scores"]}
    dense = min(scores["dense"], scores["dense, trained"])
    assert rows[-1]["increase"] == scores["tuned, router"] / dense - 1
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8").count("\n") == 5


def test_several_folders_make_a_table_and_a_figure_with_a_panel_for_each_model(run, tmp_path):
    folders = [made.write(tmp_path / f"{n}", made.about(8, share)) for n, share in enumerate((0.5, 0.9))]
    other = {"began_with": {"name": "large", "shape": [2, 8, 24], "sha256": "b" * 64}}
    folders.append(made.write(tmp_path / "2", made.about(8, 0.5, **other)))
    status, out, said = run("prefetch", "tuned", *folders, "--figure", tmp_path / "f.svg")
    assert status == 0 and "tuned, router" in out and "large, at most +8% of perplexity" in out
    assert said.count("Speed of an FFN") == 2 and (tmp_path / "f.svg").exists()


def test_what_cannot_be_read_or_written_is_one_sentence(run, tmp_path, here):
    folder = made.write(tmp_path / "t", made.about(8, 0.5))
    for words, says in (
        ((here / "m",), "training.json"),
        ((folder, "-o", tmp_path / "rows.txt"), ".csv"),
        ((folder, "--figure", tmp_path / "f.jpg"), ".png"),
    ):
        status, out, said = run("prefetch", "tuned", *words)
        assert status == 1 and says in said and not out and len(said.splitlines()) == 1
