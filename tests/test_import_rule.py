"""The house's one rule: a module imports only modules above it, in the order that the chapters are read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minillm

PACKAGE = Path(minillm.__file__).parent
# In reading order; "folder/" is every file of a folder whose own order is not fixed yet.
ORDER = """
    errors units files foreign fields arguments threads memory steps identity tables rows archive trace divergence optim
    loading/families loading/rope_config loading/family_fields loading/config loading/tensors loading/names
    loading/checkpoint loading/save loading/embedded loading/fetch loading/hub loading/pieces loading/tokenizer
    transformer/ops transformer/linear transformer/rope transformer/layer transformer/fingerprint transformer/finite
    transformer/attention transformer/ffn transformer/blocks transformer/model transformer/generation
    transformer/documents transformer/texts transformer/evaluation
    sparsity/spec sparsity/policies sparsity/masked sparsity/gathered sparsity/griffin sparsity/thresholds
    sparsity/selected sparsity/sparse sparsity/magnitudes sparsity/allocate sparsity/calibrate
    predictors/layout predictors/protocol predictors/select predictors/metrics predictors/cutoffs predictors/catalogue
    predictors/files predictors/oracle predictors/baselines predictors/quantise predictors/sign predictors/copies
    predictors/planes predictors/coded predictors/ahead predictors/learned predictors/train predictors/router
    predictors/memory predictors/clusters predictors/workshop
    prefetch/bundle prefetch/kernels prefetch/reorder prefetch/eviction prefetch/traffic prefetch/buffer prefetch/clock
    prefetch/system prefetch/reader prefetch/fetched prefetch/feedforward prefetch/record prefetch/replay
    training/losses training/slopes training/parts training/blocks training/backward training/batches
    training/fresh training/trainer training/distill training/route training/tune
    methods/base methods/wanda methods/sparsegpt methods/dsnot methods/structured methods/pipeline
    methods/pipeline_server methods/qsparse methods/
    study/describe study/bootstrap study/score study/prediction study/predicted study/sweep_rows study/record
    study/workers study/sweep study/pareto study/variants study/overlap study/edits study/natural study/distributions
    study/buffers
    study/blocks study/tuned study/passes study/disk study/costs study/summary study/choice study/checkpoints
    study/relu2 study/laws
    bench/turns bench/linear bench/shapes bench/model bench/train bench/routed bench/sparse bench/disk bench/token
    show/canvas show/labels show/primer show/map show/explain_values show/explain_passes show/results_distributions
    show/results_cuts show/results_tuned show/results_pareto show/results_predictors show/results_buffer
    show/results_activations show/results_laws show/svg show/html show/page_shared show/page_model show/page_costs
    show/page_predictors show/page_buffer show/page show/display show/stepper
    course/differences course/attempt course/check course/wire course/limits course/cells course/child course/mistakes
    course/assignment course/block course/judge course/grade course/classroom course/notebook
    cli/parser cli/flags cli/outputs cli/shared cli/demo cli/model cli/inspect cli/download cli/cut cli/prune cli/pareto
    cli/pipeline cli/train cli/predict cli/activations cli/disk cli/simulate cli/tuned cli/prefetch cli/study
    cli/course cli/bench
    cli/main __main__
""".split()
HEAVY = {"torch", "transformers"}


def place(module: str) -> int:
    """Where a module ("transformer/ops") stands in ORDER."""
    folder = module.partition("/")[0] + "/"
    return ORDER.index(module if module in ORDER else folder)


def modules() -> list[str]:
    files = (path.relative_to(PACKAGE).with_suffix("").as_posix() for path in sorted(PACKAGE.rglob("*.py")))
    return [name for name in files if not name.endswith("__init__")]


def imports(source: str, module: str) -> list[tuple[str, str]]:
    """(what is imported, in full dotted names, and when: "at once", "in a function" or "by type checkers")."""
    found = []

    def visit(node: ast.AST, when: str) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, "by type checkers")
            for child in node.orelse:
                visit(child, when)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, when) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            # "from ..trace import x" inside minillm.transformer.model: two dots take off "transformer.model"
            above = ["minillm", *module.split("/")][: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.extend((f"{base}.{alias.name}", when) for alias in node.names)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            when = "in a function"
        for child in ast.iter_child_nodes(node):
            visit(child, when)

    visit(ast.parse(source), "at once")
    return found


def own(imported: str) -> str | None:
    """The module of ours that an import names, "transformer/ops", or None: "minillm.transformer.ops.linear"."""
    top, *parts = imported.split(".")
    if top != "minillm":
        return None
    for end in range(len(parts), 0, -1):
        if (PACKAGE.joinpath(*parts[:end])).with_suffix(".py").is_file():
            return "/".join(parts[:end])
    return "__init__"


def breaches(source: str, module: str) -> list[str]:
    """Every import of a source that breaks the rule, in words."""
    found = []
    for imported, when in imports(source, module):
        target, top = own(imported), imported.partition(".")[0]
        # minillm itself gives out names of every chapter, so only what stands below them all may take from it.
        if target == "__init__" and not module.startswith(("cli/", "__main__")):
            found.append(f"{module} imports {imported}, expected a module by its own name")
        elif target not in (None, "__init__") and place(target) >= place(module):
            found.append(f"{module} imports {target}, which is not above it")
        if top in HEAVY:
            found.append(f"{module} imports {top}")
        drawing = module.startswith("show/") and when == "in a function"
        if top == "matplotlib" and not (drawing or when == "by type checkers"):
            found.append(f"{module} imports matplotlib outside a function of show/")
    return found


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_modules_above_it(module):
    assert not breaches((PACKAGE / module).with_suffix(".py").read_text(encoding="utf-8"), module)


def test_the_order_names_every_module_and_the_folders_hold_no_code_of_their_own():
    assert [place(module) for module in modules()]  # ValueError for a module that the list does not know
    for init in PACKAGE.glob("*/__init__.py"):
        body = ast.parse(init.read_text(encoding="utf-8")).body
        assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), init


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("transformer/ops", "from .model import Llama"),
        ("transformer/ops", "from . import model"),
        ("transformer/ops", "from ..sparsity.spec import SparsitySpec"),
        ("transformer/ops", "from minillm.sparsity import spec"),
        ("transformer/ops", "import minillm.transformer.rope"),
        ("transformer/ops", "from .ops import silu"),
        ("transformer/ops", "def f():\n    from .model import Llama"),
        ("transformer/ops", "if TYPE_CHECKING:\n    pass\nelse:\n    from .model import Llama"),
        ("transformer/ops", "from minillm import compare"),
        ("transformer/attention", "if TYPE_CHECKING:\n    from .model import Llama"),
        ("tables", "def f():\n    import torch.nn"),
        ("sparsity/spec", "from transformers import AutoModel"),
        ("tables", "def f():\n    import matplotlib.pyplot"),
        ("show/results_cuts", "import matplotlib.pyplot"),
    ],
)
def test_the_rule_catches_planted_breaches(module, source):
    assert breaches(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("transformer/model", "from ..errors import MinillmError\nfrom .linear import linear\nimport numpy"),
        ("show/html", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
        ("show/results_cuts", "def f():\n    import matplotlib.pyplot as plt"),
        ("bench/model", "SCRIPT = 'import torch, transformers'"),  # text for a child process is no import
        ("cli/main", "import minillm\nfrom . import __version__"),
    ],
)
def test_the_rule_lets_pass_what_is_allowed(module, source):
    assert not breaches(source, module)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("minillm", ["numpy", "tokenizers", "safetensors", "huggingface_hub", "tqdm"]),
        (
            "minillm.transformer.model",
            ["tokenizers", "safetensors", "huggingface_hub", "tqdm", "torch", "minillm.cli.main"],
        ),
        ("minillm.sparsity.calibrate", ["tokenizers", "safetensors", "huggingface_hub", "tqdm", "torch"]),
    ],
)
def test_importing_a_chapter_loads_no_package_before_it_is_needed(module, absent):
    script = f"import sys, {module}\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
