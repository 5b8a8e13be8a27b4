"""Write the README's table of figures.

    python weights_scripts/write_readme_table.py MODEL_FOLDER TEXT CALIBRATION

No figure in the README is typed by hand. This script runs the sweep of the table, and replaces the block between its
two marks. A test runs it again and compares.
"""

import argparse
from pathlib import Path

import minillm
from minillm.study.sweep import sweep
from minillm.transformer.texts import split_documents

BEGIN, END = "<!-- table: begin, written by weights_scripts/write_readme_table.py -->", "<!-- table: end -->"
README = Path(__file__).parents[1] / "README.md"
CALIBRATION_DOCUMENTS = 100


def table(model_folder: Path, text: Path, calibration: Path) -> str:
    """The text of the block: a sweep at equal neuron sparsity, and the paper's rule with its own percentage."""
    model = minillm.load(model_folder)
    documents = split_documents(calibration.read_text(encoding="utf-8"))[:CALIBRATION_DOCUMENTS]
    scored = text.read_text(encoding="utf-8")
    rows = list(sweep(model, documents, scored, ("dhar", "cats", "mid"), (0.5,), "neuron", "documents", 512))
    rows += list(sweep(model, documents, scored, ("dhar",), (0.5,), "tensor", "documents", 512))[1:]
    lines = [
        "| policy | what is 50 % | neuron sparsity | FFN weights read: mask computed / known | perplexity | vs dense |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        what = {None: "-", "neuron": "of the neurons", "tensor": "of each of three tensors (the paper)"}[row["by"]]
        reads = f"{row['read_exact']:.2f} / {row['read_known_mask']:.2f}"
        lines.append(
            f"| {row['policy']} | {what} | {row['neuron_sparsity']:.3f} | {reads} | {row['perplexity']:.2f} "
            f"| {row['vs_dense'] - 1:+.1%} |"
        )
    first = rows[0]
    return "\n".join(lines) + (
        f"\n\nTinyStories-656K, {first['tokens']:,} tokens of TinyStories' validation stories, "
        f"protocol {first['protocol']}, context {first['context']}, BOS {first['bos']}; "
        f"thresholds from {CALIBRATION_DOCUMENTS} training stories."
    )


def main() -> None:
    """Replace the block in the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("calibration", type=Path)
    arguments = parser.parse_args()
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    block = table(arguments.model, arguments.text, arguments.calibration)
    README.write_text(f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
