"""minillm: activation sparsity in large language models, in pure NumPy, every step open to inspection.

The chapters, in reading order:

    trace           the thread: the tap, and the names of all intermediates
    loading         1. from files to arrays: config.json, safetensors, embedded models, the hub's cache, the tokenizer
    transformer     2. from arrays to text: ops, rope, attention, ffn, model, generation, evaluation
    sparsity        3. cutting: what "50 % sparse" means, policies, masked and gathered FFNs, calibration
    predictors      4. predicting: which neurons a token will need: oracle, baselines, shadows, look-ahead, learned
    prefetch        5. fetching: bundles on disk, a small buffer of neurons, simulated and real reading
    study           6. studying: sweeps, tables, figures, the report, benchmarks; grading and notebooks
    cli             the command line

    import minillm
    model = minillm.load("default")  # embedded; or a Hugging Face folder
    ids = model.tokenizer.encode("Once upon a time")
    for step in minillm.generate(model, ids, max_new_tokens=40):
        print(step.text, end="")
    thresholds = minillm.calibrate(model, minillm.embedded_text("calibration"), policy="mid", sparsity=0.5)
    print(minillm.perplexity(model, minillm.embedded_text("test"), ffn=minillm.sparse_ffn(model, thresholds)))
"""

from importlib import import_module

__version__ = "0.1.0"

# Each public name and the chapter it is defined in. They are imported when first used, so that `import minillm`
# costs nothing and the command line can set the number of BLAS threads before NumPy starts.
_PUBLIC = {
    "MinillmError": "errors",
    "Trace": "trace",
    "compare": "trace",
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


def load(source, dtype="float32"):
    """Load a model: "default" (embedded), a Hugging Face folder, or "org/name[@revision]" already in the hub's cache.

    An embedded name wins over a folder of that name in the current directory, which is "./default" (or a Path).
    dtype: "float32" or "float64". Never downloads. Raises MinillmError (ConfigError, CheckpointError), in one
    sentence, for anything that cannot be run as it is.
    """
    from .loading.hub import resolve
    from .transformer.model import Llama

    return Llama.from_folder(resolve(source), dtype)


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_PUBLIC])
