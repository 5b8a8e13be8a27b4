"""Commands that look into one model: its parts and neurons, every intermediate of a pass, two traces compared."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MinillmError, show
from . import flags
from .shared import (
    in_lines,
    labelled,
    load_ffn,
    load_model,
    prompt_ids,
    read_text,
    say,
    text_or_embedded,
    wrapped,
    write_figure,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..loading.tensors import TensorInfo
    from ..transformer.model import Llama


def add(commands: flags.Commands) -> None:
    """Add the commands of this file."""
    cut, run, context = flags.cutting(), flags.running(), flags.context()
    text = flags.text("the text to count on (default: the embedded one)")
    counted = text, context, flags.tokens(f"{flags.DEMO_TOKENS:,}")
    inspect = flags.command(commands, "inspect", command_inspect, flags.model(), *counted, flags.figure(), run)
    inspect.add_argument("--natural", action="store_true", help="share of zeros and near-zeros per layer on a text")
    inspect.add_argument(
        "--distributions", action="store_true", help="sizes of weights and activations, per layer on a text"
    )

    trace = flags.command(
        commands, "trace", command_trace, flags.model(), flags.prompt("the text to trace"),
        flags.text("a file to use instead of --prompt"), cut, flags.output("write an .npz for `minillm compare`"), run,
    )  # fmt: skip
    trace.add_argument(
        "--keep", action="append", metavar="PATTERN", help='steps to keep, as in "blocks.0.mlp.*"; repeatable'
    )
    trace.add_argument("--explain", metavar="STEP", help="explain a step, and do nothing else")
    trace.add_argument(
        "--ids",
        type=flags.token_ids,
        metavar="IDS",
        help="token ids with commas in place of a text, for a model without tokenizer",
    )

    compare = flags.command(commands, "compare", command_compare)
    compare.add_argument("ours", metavar="OURS.npz")
    compare.add_argument("theirs", metavar="THEIRS.npz")
    compare.add_argument("--rtol", type=float, help="tolerance (default: 1e-10 where both are float64, else 1e-5)")


# ---- inspect ---------------------------------------------------------------------------------------------------------


def command_inspect(a: argparse.Namespace) -> int:
    """Show a checkpoint: config, parts, tensors; on request its natural zeros and the sizes of its values.

    Of a folder that cannot be loaded, the tensors are shown and then the reason.
    """
    from dataclasses import asdict

    from ..loading.checkpoint import checkpoint_tensors
    from ..study.describe import describe, headline

    count_zeros, count_sizes = a.natural or bool(a.text and not a.distributions), a.distributions
    if a.figure:
        from ..show.canvas import check_figure

        check_figure(a.figure)
        if count_zeros == count_sizes:
            raise MinillmError("--figure draws what --natural or --distributions counts, expected one of the two")
    try:
        model = load_model(a)
    except (MinillmError, MemoryError) as reason:
        show_unloadable(a, reason)
        raise
    documents = counted_documents(model, a) if count_zeros or count_sizes else []
    natural = natural_rows(model, documents, a) if count_zeros else []
    distributions = distribution_rows(model, documents, a) if count_sizes else {}
    tensors = tensor_rows((checkpoint_tensors(model.folder) if model.folder else {}).values())
    if a.json:
        result = {"model": model.name, "config": asdict(model.config), "parts": describe(model), "tensors": tensors}
        print(json.dumps(result | ({"natural": natural} if natural else {}) | distributions))
        return 0
    print(wrapped(headline(model)) + "\n")
    if natural:  # what was asked for comes first
        print_natural(natural)
    if distributions:
        print_distributions(**distributions)
    print_model(model, tensors)
    return 0


def tensor_rows(tensors: Iterable[TensorInfo]) -> list[dict[str, Any]]:
    """A row for each stored tensor: name, dtype, shape, bytes, file."""
    return [
        {"tensor": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes, "file": Path(t.path).name}
        for t in tensors
    ]


def tensor_table(rows: list[dict[str, Any]]) -> str:
    """The rows of ``tensor_rows`` as text, a table for each file."""
    from ..tables import keys_as_headings, text_table

    columns, parts = keys_as_headings({"tensor": "", "dtype": "", "shape": "", "bytes": ","}), []
    for file in dict.fromkeys(row["file"] for row in rows):
        held = [row | {"shape": " x ".join(map(str, row["shape"]))} for row in rows if row["file"] == file]
        parts.append(f"{show(file)}\n{text_table(held, columns)}")
    return "\n\n".join(parts)


def show_unloadable(a: argparse.Namespace, reason: Exception) -> None:
    """The tensors of a folder that could not be loaded, in every file whose header can be read."""
    from ..loading.checkpoint import readable_tensors
    from ..loading.hub import resolve

    try:
        folder = resolve(a.model)
    except MinillmError:  # which is then the reason
        return
    if rows := tensor_rows(readable_tensors(folder)):
        result = {"model": show(folder.name), "error": str(reason), "tensors": rows}
        print(json.dumps(result) if a.json else tensor_table(rows))


def print_model(model: Llama, tensors: list[dict[str, Any]]) -> None:
    """The parts of the model, its config and its tensors."""
    from ..study.describe import PART_COLUMNS, config_rows, describe
    from ..tables import text_table

    print(text_table(describe(model), PART_COLUMNS) + "\n")
    fields = {row["field"]: row["value"] for row in config_rows(model)}
    if model.has_tokenizer:
        fields["BOS before every text"] = str(list(model.tokenizer.bos_ids))
    print(labelled(fields))
    print("\n" + tensor_table(tensors))


def print_natural(rows: list[dict]) -> None:
    """Zeros and near-zeros per layer, with what one must know to read them."""
    from ..tables import keys_as_headings, text_table

    print(f"Natural sparsity: nothing is cut, {rows[0]['tokens']:,} tokens, BOS included.\n")
    print(text_table(rows, keys_as_headings({"layer": "d"} | dict.fromkeys(list(rows[0])[2:], ".4f"))))
    about = "Zeros are exact. Below 1 % (10 %): of the root mean square of the gates of the same token and layer."
    print("\n" + wrapped(about) + "\n")


def print_distributions(weight_magnitudes: list[dict], activation_magnitudes: list[dict]) -> None:
    """The two tables of ``distribution_rows``, with what one must know to read them."""
    from ..study.distributions import normal_below
    from ..study.natural import NEAR_ZERO
    from ..tables import keys_as_headings, text_table

    print("Magnitudes of the FFN's weights.\n")
    columns = {"layer": "d", "matrix": ""} | dict.fromkeys(list(weight_magnitudes[0])[3:], ".4f")
    print(text_table(weight_magnitudes, keys_as_headings(columns), names=2) + "\n")
    normal = " and ".join(f"{normal_below(near):.4f}" for near in NEAR_ZERO)
    about = "Zeros are exact. Below 1 % (10 %): of the matrix's own root mean square (rms)"
    print(wrapped(f"{about}; of a normal distribution {normal} would lie there."))
    print("\nMagnitudes of the FFN's activations: shares below a magnitude, and the median.\n")
    columns = {"step": "", "layer": "d"} | dict.fromkeys(list(activation_magnitudes[0])[2:], ".3f")
    print(text_table(activation_magnitudes, keys_as_headings(columns | {"median": ".4f"}), names=2) + "\n")


def counted_documents(model: Llama, a: argparse.Namespace) -> list[str]:
    """The documents that --natural and --distributions count on: as many as hold the tokens asked for."""
    from ..transformer.texts import as_documents, first_tokens

    documents = as_documents(text_or_embedded(a.text, "test"))
    return first_tokens(model, documents, a.tokens or flags.DEMO_TOKENS, a.context)


def natural_rows(model: Llama, documents: list[str], a: argparse.Namespace) -> list[dict]:
    """Natural sparsity per layer on a text; also draws it where a figure is wanted."""
    from ..study.natural import natural_sparsity

    rows = natural_sparsity(model, documents, a.context)
    if a.figure:
        from ..show.results_distributions import natural_by_layer

        write_figure(a.figure, natural_by_layer({model.name: rows}))
    return rows


def distribution_rows(model: Llama, documents: list[str], a: argparse.Namespace) -> dict[str, list[dict]]:
    """Tables of weight and activation magnitudes; also draws the activations' where a figure is wanted."""
    from ..study import distributions

    magnitudes = distributions.activation_magnitudes(model, documents, a.context)
    if a.figure:
        from ..show.results_distributions import magnitudes_figure

        curves = {step: distributions.curve(magnitudes, step) for step in magnitudes.layers[0]}
        write_figure(a.figure, magnitudes_figure(curves, model.name))
    weights = distributions.weight_magnitudes(model)
    return {"weight_magnitudes": weights, "activation_magnitudes": distributions.activation_rows(magnitudes)}


# ---- traces ----------------------------------------------------------------------------------------------------------


def command_trace(a: argparse.Namespace) -> int:
    """Record every intermediate of one pass."""
    from ..steps import explain, step_info
    from ..trace import Trace

    if a.explain is not None:
        text, info = explain(a.explain), step_info(a.explain)
        print(json.dumps({"step": a.explain} | (info._asdict() if info else {})) if a.json else in_lines(text))
        return 0
    model = load_model(a)
    if a.ids and a.text:
        raise MinillmError("--ids and --text were both given, expected one of them")
    if not a.ids and not model.has_tokenizer:
        raise MinillmError(f"{model.folder}: holds no tokenizer.json for a text, expected --ids 1,2,3 and so on")
    ids = a.ids or prompt_ids(model, read_text(a.text) if a.text else a.prompt)
    with Trace(keep=a.keep or "*", model=model.fingerprint) as trace:
        model.forward(ids, ffn=load_ffn(a, model), tap=trace)
    if a.output:
        trace.save(a.output)
        say(f"{len(trace)} steps, {trace.nbytes:,} bytes -> {a.output}")
    if a.json:
        print(json.dumps({name: {"shape": value.shape, "dtype": str(value.dtype)} for name, value in trace.items()}))
    elif not a.output:
        trace.show()
    return 0


def command_compare(a: argparse.Namespace) -> int:
    """Compare two traces; exit status 1 when they diverge."""
    from ..divergence import compare

    result = compare(a.ours, a.theirs, a.rtol)
    print(json.dumps(result.asdict()) if a.json else in_lines(str(result)))
    return 0 if result.first is None else 1
