"""A bug, planted in the real source: a change of one piece of a function."""

import __future__

import inspect
import sys
import textwrap

from minillm.training.blocks import WIRINGS_BACK
from minillm.training.parts import NORMS_BACK
from minillm.transformer.blocks import WIRINGS
from minillm.transformer.ops import NORMS


def plant(monkeypatch, owner, name: str, old: str, new: str):
    """Change ``old`` into ``new`` in the source of owner.name, wherever minillm uses it, and give the function back."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has {source.count(old)} times {old!r}: bring the planted bug up to date"
    space = dict(vars(sys.modules[function.__module__]))
    flags = __future__.annotations.compiler_flag
    exec(compile(source.replace(old, new), f"<{name} with a bug>", "exec", flags), space)
    if inspect.isclass(owner):
        users = [owner]
    else:
        loaded = [module for key, module in sys.modules.items() if key.startswith("minillm.")]
        users = [module for module in loaded if vars(module).get(name) is function]
    assert users
    for user in users:
        monkeypatch.setattr(user, name, space[name])
    for table in (NORMS, WIRINGS, NORMS_BACK, WIRINGS_BACK):  # functions that are looked up by a name of the config
        for key in [key for key, value in table.items() if value is function]:
            monkeypatch.setitem(table, key, space[name])
    return space[name]
