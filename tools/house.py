"""How the house stands: rooms, modules, functions, `Any`, dict-typed manifests, private names of libraries, circles.

    python tools/house.py [--source DIR] [--json]

Reads source text only: nothing is imported. tests/test_layout.py holds the limits.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

SOURCE = Path(__file__).resolve().parents[1] / "src" / "diffpipe"
LONGEST_MODULE = 400  # lines
LONGEST_FUNCTION = 50  # lines, its decorators and docstring included
REASON = re.compile(r"# Long: \S")  # stands right above what may be longer
SEAM = "_seam"  # how the name of a module ends that holds what is private or patched of a library


class Import(NamedTuple):
    """An import statement: the importing module, where, the module or package it names, and whether it runs at once."""

    module: str
    line: str
    target: str
    at_import: bool

    @property
    def inside(self) -> bool:
        return self.target.split(".")[0] == "diffpipe"


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """ "diffpipe.cli.build" -> its file; packages by their own name."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        names = ["diffpipe", *path.relative_to(source).with_suffix("").parts]
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def room(module: str) -> str:
    """ "diffpipe.cli.build" -> "cli"; the package's own __init__ -> "diffpipe"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports(source: Path = SOURCE) -> Iterator[Import]:
    """Every import statement of the tree but those for type checkers alone."""
    known = modules(source)
    for module, path in known.items():
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        late, unread = set(map(id, _run_later(tree))), set(map(id, _for_checkers(tree)))
        for node in ast.walk(tree):
            if id(node) not in unread:
                for target in _targets(node, package, known):
                    where = f"{path.relative_to(source)}:{getattr(node, 'lineno', 0)}"
                    yield Import(module, where, target, id(node) not in late)


def _run_later(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from ast.walk(node)


def _for_checkers(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for statement in node.body:
                yield from ast.walk(statement)


def _targets(node: ast.AST, package: list[str], known: dict[str, Path]) -> Iterator[str]:
    """The full names of the modules that an import statement reads."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*start, *([node.module] if node.module else [])])
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield whole if whole in known else base


def circles(source: Path = SOURCE) -> list[list[str]]:
    """The groups of modules that import each other in a circle, late imports included."""
    arrows: dict[str, set[str]] = {name: set() for name in modules(source)}
    for one in imports(source):
        if one.target in arrows and one.target != one.module:
            arrows[one.module].add(one.target)
    reached = {name: _reached(name, arrows) for name in arrows}
    groups = {
        tuple(sorted({name} | {other for other in reached[name] if name in reached[other]}))
        for name in arrows
        if name in reached[name]
    }
    return sorted(map(list, groups))


def _reached(start: str, arrows: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        for name in arrows[ahead.pop()] - found:
            found.add(name)
            ahead.append(name)
    return found


class Length(NamedTuple):
    """Lines of a module or function, and whether a reason stands beside it."""

    name: str
    lines: int
    reason: bool


def module_lengths(source: Path = SOURCE) -> list[Length]:
    """Every module's lines; a reason is a "# Long: ..." line of it that begins at the margin, not above a function."""
    found = []
    for module, path in modules(source).items():
        lines = path.read_text(encoding="utf-8").splitlines()
        found.append(Length(module, len(lines), any(REASON.match(line) for line in lines[:12])))
    return found


def function_lengths(source: Path = SOURCE) -> list[Length]:
    """Every function's lines, inner functions too."""
    found = []
    for module, path in modules(source).items():
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                reason = first > 1 and bool(REASON.match(lines[first - 2].strip()))
                found.append(Length(f"{module}.{node.name}", (node.end_lineno or first) - first + 1, reason))
    return found


def too_long(found: list[Length], most: int) -> list[str]:
    return [f"{one.name}: {one.lines} lines" for one in found if one.lines > most and not one.reason]


def count_words(pattern: str, source: Path = SOURCE) -> int:
    return sum(len(re.findall(pattern, path.read_text(encoding="utf-8"))) for path in modules(source).values())


def private_names(source: Path = SOURCE) -> dict[str, Counter[str]]:
    """Module -> private names of libraries that it imports, reads or replaces, as far as the text tells.

    Counted: imports of a third-party module or name that begins with an underscore; attributes that begin with one on
    anything but self and cls and that no module of diffpipe defines; the same as strings of getattr, setattr, hasattr.
    """
    own = _own_privates(source)
    found: dict[str, Counter[str]] = {}
    for module, path in modules(source).items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        unread = set(map(id, _for_checkers(tree)))
        found_here = (name for node, name in _privates(tree) if id(node) not in unread)
        names = Counter(name for name in found_here if name not in own)
        if names:
            found[module] = names
    return found


def _own_privates(source: Path) -> set[str]:
    """The private names that diffpipe's own code defines: functions, classes, variables, attributes of self."""
    own: set[str] = set()
    for path in modules(source).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
                own.add(node.attr)
    return own


def _is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _privates(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, part) for alias in node.names for part in alias.name.split(".") if _is_private(part))
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node, part) for part in parts if _is_private(part))
        elif isinstance(node, ast.Attribute) and not _is_own(node.value) and _is_private(node.attr):
            yield node, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            key = node.args[1]
            named = node.func.id in ("getattr", "setattr", "hasattr", "delattr") and isinstance(key, ast.Constant)
            if named and isinstance(key.value, str) and _is_private(key.value):  # type: ignore[attr-defined]
                yield node, key.value  # type: ignore[attr-defined]


def report(source: Path) -> dict[str, Any]:
    """All figures, as plain data."""
    lines = module_lengths(source)
    functions = function_lengths(source)
    rooms = Counter(room(one.name) for one in lines)
    private = private_names(source)
    return {
        "modules per room": dict(sorted(rooms.items())),
        "modules": len(lines),
        "lines": sum(one.lines for one in lines),
        "median module": median(one.lines for one in lines),
        "largest modules": [f"{one.lines} {one.name}" for one in sorted(lines, key=lambda one: -one.lines)[:3]],
        "modules over the limit": too_long(lines, LONGEST_MODULE),
        "functions": len(functions),
        "median function": median(one.lines for one in functions),
        "largest functions": [f"{one.lines} {one.name}" for one in sorted(functions, key=lambda one: -one.lines)[:3]],
        "functions over the limit": too_long(functions, LONGEST_FUNCTION),
        "longer with a reason": [one.name for one in functions if one.lines > LONGEST_FUNCTION and one.reason],
        "Any": count_words(r"\bAny\b", source),
        "manifests as dicts": count_words(r"\b(manifest|recorded): (Mapping|dict)\[str, (Any|object)\]", source),
        "manifests by a literal": count_words(r"\bmanifest(\(\))?\[\"", source),
        "circles of imports": circles(source),
        "private names in seams": {name: dict(names) for name, names in private.items() if name.endswith(SEAM)},
        "private names elsewhere": {name: dict(names) for name, names in private.items() if not name.endswith(SEAM)},
    }


def main() -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    reader.add_argument("--source", type=Path, default=SOURCE, help="the package's folder, for another checkout")
    reader.add_argument("--json", action="store_true")
    given = reader.parse_args()
    found = report(given.source)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, dict | list):
            print(f"{name}: {sum(map(_amount, value.values())) if isinstance(value, dict) else len(value)}")
            rows = value.items() if isinstance(value, dict) else ((one, "") for one in value)
            for key, what in rows:
                print("   ", key, what)
        else:
            print(f"{name}: {value}")


def _amount(value: Any) -> int:
    return sum(value.values()) if isinstance(value, dict) else int(value)


if __name__ == "__main__":
    sys.exit(main())
