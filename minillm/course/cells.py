"""What of a student's file is executed: all of a Python file; of a notebook, what its functions need.

A notebook plots, prints, trains and tries things out. None of that is needed to grade a function. So, of each cell,
only those statements run that the wanted functions need, directly or through what they call:

    needed      the wanted names;  and every name that is used by a statement which binds a needed name
    executed    the statements that bind a needed name (imports, functions, classes, assignments) or call a method of
                it (table.append(1)), in their order

A statement that fails, or a cell that is not valid Python, costs only the names that it binds.
"""

from __future__ import annotations

import ast
import dis
import json
import linecache
import re
import sys
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from ..errors import MinillmError, show
from .attempt import WORDS, error_text, raised

# Lines of a cell that are meant for IPython: %magic, !command, what? and x = !command.
FOR_IPYTHON = re.compile(r"^([ \t]*)(?:[%!?].*|[\w.]+\?{1,2})$", re.M)
ASSIGNED = re.compile(r"^([ \t]*[\w, \t]+=[ \t]*)[%!].*$", re.M)
OF_ANOTHER_LANGUAGE = re.compile(r"\s*%%(?!time|timeit|prun|capture)\w+")


class Executed(NamedTuple):
    """A file after its execution: {name: what it defines}, and {name: why it could not be defined}."""

    defined: dict[str, object]
    failed: dict[str, str]


class Statement(NamedTuple):
    """A statement of a notebook: its cell ("cell 3"), its code, and names.

    binds: those that it binds or sets a part of; imports: those among them that are imported; calls: those of which it
    calls a method; uses: those that it reads.
    """

    cell: str
    code: types.CodeType
    binds: set[str]
    imports: set[str]
    calls: set[str]
    uses: set[str]


class NoIPython:
    """What get_ipython() gives, in a script that was exported from a notebook: its magics do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


def executed(name: str, source: bytes, wanted: Collection[str]) -> Executed:
    """Execute a .py file, or of an .ipynb file what the wanted functions need. Raises MinillmError in one sentence."""
    module = types.ModuleType("answer")
    module.__file__ = name
    vars(module)["get_ipython"] = NoIPython
    sys.modules["answer"] = module  # where dataclasses, for one, look for a class's own module
    if name.lower().endswith(".ipynb"):
        failed = run_cells(code_cells(source), vars(module), wanted)
    else:
        failed = {}
        code = compiled(source, name)
        try:
            exec(code, vars(module))
        except BaseException as error:  # exit(), too
            raise MinillmError(f"importing it {raised(error, name)}") from None
    defined = {key: vars(module)[key] for key in wanted if key in vars(module)}
    return Executed(defined, {key: why for key, why in failed.items() if key in wanted and key not in defined})


def compiled(source: bytes | str | ast.Module, name: str) -> types.CodeType:
    """Compile a source. Raises MinillmError."""
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        line = f"line {error.lineno}" if error.lineno else "it"
        raise MinillmError(f"{line} is not valid Python ({show(error.msg, WORDS)})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise MinillmError(f"it is not valid Python ({error_text(error)})") from None


# ---- notebooks -------------------------------------------------------------------------------------------------------
def code_cells(source: bytes) -> dict[str, str]:
    """{"cell 3": code} of a notebook; cells are counted from its top, Markdown included. Raises MinillmError."""
    found = {}
    try:
        cells = json.loads(source)["cells"]
        for i, cell in enumerate(cells, 1):
            if cell["cell_type"] == "code":
                code = cell["source"]
                found[f"cell {i}"] = code if isinstance(code, str) else "".join(code)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise MinillmError("it is not a notebook (nbformat 4), expected JSON with a list of cells") from None
    return found


def run_cells(cells: dict[str, str], namespace: dict[str, object], wanted: Collection[str]) -> dict[str, str]:
    """Execute what the wanted names need; {name: why} of what failed."""
    statements: list[Statement] = []
    failed: dict[str, str] = {}
    for cell, code in cells.items():
        try:
            statements += parsed(cell, code)
        except MinillmError as error:
            failed |= dict.fromkeys(re.findall(r"^\s*def (\w+)", code, re.M), f"is missing: in {cell}, {error}")
    for statement in needed_of(statements, wanted):
        try:
            exec(statement.code, namespace)
        except BaseException as error:  # exit(), too
            failed |= dict.fromkeys(statement.binds, f"is missing: its cell {raised(error, statement.cell)}")
    return failed


def parsed(cell: str, code: str) -> Iterator[Statement]:
    """The statements of a cell. Raises MinillmError where it is not valid Python."""
    if OF_ANOTHER_LANGUAGE.match(code):
        return
    try:
        compiled(code, cell)
    except MinillmError:
        # As it stands a line "% c" may also be the second line of a sum, so it is looked at only now.
        code = ASSIGNED.sub(r"\1None", FOR_IPYTHON.sub(r"\1pass", code))
        compiled(code, cell)
    linecache.cache[cell] = (len(code), None, code.splitlines(keepends=True), cell)  # so that an error shows its line
    for tree in ast.parse(code).body:
        statement = compiled(ast.Module([tree], []), cell)
        yield Statement(cell, statement, *names_of(tree), used(statement))


def needed_of(statements: Sequence[Statement], wanted: Collection[str]) -> list[Statement]:
    """The statements that bind the wanted names, and those that make what these use."""
    imported = set[str]().union(*(statement.imports for statement in statements))
    needed, before = {*wanted, "*"}, set[str]()  # from x import *: nobody knows which names these are

    def makes(statement: Statement) -> bool:
        # A call of a module's function (plt.plot(x)) changes nothing that is needed.
        return bool(needed & (statement.binds | (statement.calls - imported)))

    while needed != before:
        before = set(needed)
        for statement in filter(makes, statements):
            needed |= statement.uses
    return list(filter(makes, statements))


def names_of(tree: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """The names that a statement binds or sets a part of (table[0] = 1), imports, and calls a method of."""
    binds, imports, calls = set[str](), set[str](), set[str]()
    for node in within(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            binds.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            binds |= root(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            calls |= root(node.func)
    return binds | imports, imports, calls


def root(node: ast.expr) -> set[str]:
    """The name at the beginning of table[0].rows, if there is one."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def within(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement that belong to the same scope: not the bodies of functions and classes."""
    yield tree
    if not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for child in ast.iter_child_nodes(tree):
            yield from within(child)


def used(code: types.CodeType) -> set[str]:
    """The global names that code reads, its functions' bodies included."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_NAME", "LOAD_GLOBAL")}
    return names.union(*(used(part) for part in code.co_consts if isinstance(part, types.CodeType)))
