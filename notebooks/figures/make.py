"""Draw the README's picture from the embedded model, and write its block there.

    python notebooks/figures/make.py

Three panels: which neurons each token of a sentence needs, what it costs to leave the others out, and how much then has
to be fetched. No figure in the README is typed by hand: the words around the picture come from the same rows, and a
test computes them again.
"""

from pathlib import Path

import minillm
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.workshop import Workshop
from minillm.prefetch.replay import ReplaySettings
from minillm.show.canvas import alt_text, new_axes, save_figure
from minillm.show.explain_values import neuron_raster
from minillm.show.results_cuts import cost_of_cuts
from minillm.show.results_predictors import bytes_read
from minillm.study.buffers import ALL, buffer_rows, plan_of
from minillm.study.sweep import sweep
from minillm.transformer.texts import Sample, first_tokens, split_text

README, PICTURE = Path(__file__).parents[2] / "README.md", Path(__file__).with_name("readme.png")
BEGIN, END = "<!-- figure: begin, written by notebooks/figures/make.py -->", "<!-- figure: end -->"
SENTENCE = "Once upon a time there was a little girl named Lily. She had a red ball."
SPARSITY, LAYER, BUFFER = 0.7, 4, 0.25
CALIBRATED, SCORED, REPLAYED = 6_000, 4_000, 1_000  # tokens


def draw():
    """The figure (three panels), and the sentences below it."""
    model = minillm.load("default")
    training, held = split_text(first_tokens(model, split_text(minillm.embedded_text("calibration"))[1], CALIBRATED))
    documents = split_text(minillm.embedded_text("test"))[1]
    needed, cost, fetched = new_axes(1, 3, (3.9, 3.4))

    thresholds = minillm.calibrate(model, held, policy="mid", sparsity=SPARSITY, by="neuron")
    ids = model.tokenizer.encode(SENTENCE)
    with minillm.Trace(keep=f"blocks.{LAYER}.mlp.mask") as trace:
        model.forward(ids, ffn=minillm.sparse_ffn(model, thresholds), tap=trace)
    words = [model.tokenizer.decode([index]) or "<s>" for index in ids]
    neuron_raster(trace[f"blocks.{LAYER}.mlp.mask"], words, ax=needed)
    needed.set_title("1. Each token needs a few of a layer's neurons\n(dark), and each token others", fontsize=9)

    policies, targets = ("mid", "dhar", "cats"), (0.3, 0.5, 0.7)
    rows = list(sweep(model, held, first_tokens(model, documents, SCORED), policies, targets, "neuron"))
    cost_of_cuts(rows, ax=cost)
    cost.set_title("2. What it costs to leave the others out\n(three rules of which those are)", fontsize=9)

    shadow = Workshop(model, thresholds, training, held).make("shadow-4")
    fit_cutoffs(model, shadow, thresholds, held, 1 - SPARSITY)
    replayed = Sample(first_tokens(model, documents, REPLAYED))
    traffic = list(buffer_rows(model, thresholds, replayed, [plan_of(shadow)], ReplaySettings(shares=(0, BUFFER))))
    sizes = {(row["predictor"] == ALL, row["capacity"] > 0): row["bytes_per_token"] for row in traffic}
    first, last = rows[0], traffic[-1]
    bars = {"dense": sizes[True, False], "neurons predicted": sizes[False, False]}
    saved = [100 * (1 - size / sizes[False, False]) for size in (sizes[False, True], last["random_bytes"])]
    bars |= {"buffer: last used": sizes[False, True], "buffer: random set": last["random_bytes"]}
    bytes_read(bars, "fetched per token", ax=fetched)
    fetched.set_title("3. What then has to be fetched\nfrom slow memory", fontsize=9)

    dearer = 100 * (last["perplexity"] / last["dense_perplexity"] - 1)
    below = (
        f"The embedded model. Left: layer {LAYER} (of {len(model.layers)}), {100 * SPARSITY:.0f} % left out. Middle: "
        f"{first['tokens']:,} tokens, protocol {first['protocol']}, context {first['context']}, BOS {first['bos']}. "
        f"Right: {last['tokens']:,} tokens; a copy of the weights in four bits, {last['own_bytes'] / 1e6:.2f} MB in "
        f"fast memory, predicts the neurons, and perplexity rises from {last['dense_perplexity']:.2f} by "
        f"{dearer:.1f} %. A buffer that keeps the {100 * BUFFER:.0f} % of neurons that were used last saves "
        f"{saved[0]:.0f} % of what is fetched without it; a fixed set of as many neurons, drawn at random, saves "
        f"{saved[1]:.0f} %."
    )
    return needed.figure, below


def block(figure, below: str) -> str:
    """The README's lines between the marks."""
    return f"![{alt_text(figure)}]({PICTURE.relative_to(README.parent).as_posix()})\n\n{below}"


def main() -> None:
    """Write the picture and the README's block."""
    figure, below = draw()
    save_figure(figure, PICTURE)
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{block(figure, below)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
