"""minillm: activation sparsity in large language models, in pure NumPy, every step open to inspection.

The chapters, in reading order:

    errors, files   one sentence for each error; files read and written safely, their fields checked, and whose they are
    steps, trace    the names of all intermediates, and the tap that gives them out
    tables, rows    rows as text and files, and read back; archive: the same for arrays
    loading         1. from files to arrays: config.json, safetensors, the tokenizer, embedded models, the hub's cache
    transformer     2. from arrays to text: ops, rope, attention, ffn, blocks, model, generation, texts, evaluation
    sparsity        3. cutting: what "50 % sparse" means, policies, masked and gathered FFNs, calibration
    predictors      4. predicting: which neurons a token will need: oracle, baselines, copies, look-ahead, learned
    prefetch        5. fetching: bundles on disk, a small buffer of neurons, simulated and real reading
    training        6. training: the backward pass, read off the trace; the training loop; sparse models distilled
    methods         7. related methods: each gives a variant of a model, to be compared with thresholds
    study           8. studying: experiments that give rows: sweeps, predictors compared, buffers, disks, the report
    bench           speed, measured in turns
    show            drawing: figures, the map, web pages
    course          the course's tools: checks of exercises, grading, notebooks
    cli             the command line

    import minillm
    model = minillm.load("default")  # embedded; or a Hugging Face folder
    ids = model.tokenizer.encode("Once upon a time")
    for step in minillm.generate(model, ids, max_new_tokens=40):
        print(step.text, end="")
    thresholds = minillm.calibrate(model, minillm.embedded_text("calibration"), policy="mid", sparsity=0.5)
    print(minillm.perplexity(model, minillm.embedded_text("test"), ffn=minillm.sparse_ffn(model, thresholds)))
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # true for type checkers, which know this name; importing typing would slow every start
if TYPE_CHECKING:
    from pathlib import Path

    from .transformer.model import Llama

__version__ = "0.1.0"

# Each public name and the module that defines it. They are imported when first used, so that `import minillm`
# costs nothing.
_PUBLIC = {
    "MinillmError": "errors",
    "use_threads": "threads",
    "Trace": "trace",
    "compare": "divergence",
    "embedded_text": "loading.embedded",
    "Llama": "transformer.model",
    "KVCache": "transformer.attention",
    "swiglu": "transformer.ffn",
    "generate": "transformer.generation",
    "perplexity": "transformer.evaluation",
    "SparsityMeter": "sparsity.spec",
    "Thresholds": "sparsity.thresholds",
    "calibrate": "sparsity.calibrate",
    "sparse_ffn": "predictors.select",
    "load_predictor": "predictors.files",
}

__all__ = ["load", *_PUBLIC]


def load(source: str | Path, dtype: str | type = "float32") -> Llama:
    """Load a model: "default" (embedded), a Hugging Face folder, or "org/name[@revision]" already in the hub's cache.

    An embedded name wins over a folder of that name in the current directory, which is "./default" (or a Path).
    dtype: "float32" or "float64". Never downloads. Raises MinillmError (ConfigError, CheckpointError), in one
    sentence, for anything that cannot be run as it is.
    """
    from .loading.hub import resolve
    from .transformer.model import Llama

    return Llama.from_folder(resolve(source), dtype)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
