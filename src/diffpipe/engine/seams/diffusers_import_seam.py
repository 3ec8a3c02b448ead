"""How diffusers is imported in a shorter way. Tried with diffusers 0.42.1.

The packages under diffusers.models import all of their modules, for each model that there is. Of those whose __init__
does nothing else than gather names, each name is looked up when it is asked for. One that does more is left as it is.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType

from .seam import Seam

PACKAGES = "diffusers.models."  # what the names of such packages begin with

GATHERING = Seam(
    "diffusers",
    "models.transformers and other packages whose __init__ only gathers names",
    buys="0.5 s of a cold start: only the models in use are imported",
    without="all models are imported at each start",
    file="diffusers/models/transformers/__init__.py",
    text="if is_torch_available():\n    from .",
)
SEAMS = (GATHERING,)


def gather(where: Mapping[str, str], module: ModuleType) -> None:
    """Load a package whose __init__ gathers names (name -> module), each to be looked up at first use (PEP 562).

    In place of the loader's own `exec_module`.
    """

    def look_up(name: str) -> object:
        if name not in where:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        found: object = getattr(importlib.import_module(f".{where[name]}", module.__name__), name)
        setattr(module, name, found)
        return found

    module.__getattr__ = look_up  # type: ignore[method-assign]
    module.__dir__ = lambda: sorted({*vars(module), *where})  # type: ignore[method-assign]


def gathered(source: str) -> dict[str, str]:
    """Name -> module of an __init__ that only gathers names; {} for one that does anything else.

    Such a file holds imports from its own modules, bare or under `if is_torch_available():`, and the import of that.
    """
    where: dict[str, str] = {}
    for node in _statements(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or any(alias.name == "*" for alias in node.names):
            return {}
        names = {alias.asname or alias.name: alias.name for alias in node.names}
        if node.level == 1 and node.module and all(asked == name for asked, name in names.items()):
            where |= dict.fromkeys(names, node.module)
        elif set(names) != {"is_torch_available"}:
            return {}
    return {} if set(where) & set(where.values()) else where  # a module would hide what it holds under its own name


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, with those that run if there is torch in the place of the condition."""
    for node in tree.body:
        if isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) == "is_torch_available()":
            yield from node.body
        else:
            yield node
