"""Everything that minillm refuses, it refuses with one of these, in one sentence.

A sentence names where (file and field), what was found and what was expected. All of them are
ValueErrors, so that a caller who knows nothing of minillm can still catch them.
"""


class MinillmError(ValueError):
    """Something given to minillm (a file, an argument, a text) cannot be used as it is."""


class CheckpointError(MinillmError):
    """Weights: a safetensors file, its index, or the folder that holds them."""


class ConfigError(MinillmError):
    """config.json: a field is missing, out of range, contradictory, or not implemented here."""


class TokenizerError(MinillmError):
    """tokenizer.json, or a text or an id that the tokenizer cannot take."""


class TraceError(MinillmError, KeyError):
    """A step name or pattern that matched nothing, an edit that never fired, a trace that cannot be read.

    Also a KeyError, because a Trace is a mapping from step names to arrays.
    """

    __str__ = Exception.__str__  # KeyError would print the sentence in quotation marks


class ThresholdsError(MinillmError):
    """A thresholds file, or thresholds that do not fit the model."""


class BundleError(MinillmError):
    """A folder of neuron bundles."""
