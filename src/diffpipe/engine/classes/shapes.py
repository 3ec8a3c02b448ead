"""What an annotation, live or as text, lets an argument be: alternatives, each a kind of value some lists deep."""

from __future__ import annotations

import ast
import builtins
import collections.abc
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import NamedTuple

Namespace = Mapping[str, object]  # the names of the module that an annotation stands in


class Shape(NamedTuple):
    """One alternative of an annotation: what it holds (a kind of flag, or tensor, array, any, other) and how many lists
    or tuples deep."""

    leaf: str
    depth: int = 0
    tupled: bool = False
    choices: tuple[str, ...] = ()


Shapes = frozenset[Shape]

_NAMED_LEAVES: Mapping[str, str] = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "str": "text",
    "dict": "json",
    "Dict": "json",
    "Mapping": "json",
    "Image": "image",
    "ndarray": "array",
    "Any": "any",
}
_SEQUENCES = {"list", "List", "tuple", "Tuple", "Sequence", "Iterable", "Collection"}


def shapes_of(annotation: object, namespace: Namespace) -> Shapes:
    """The alternatives of an annotation, live or as text; None and what is missing add none."""
    if annotation in (None, types.NoneType, inspect.Parameter.empty):
        return frozenset()
    if isinstance(annotation, typing.ForwardRef):
        return shapes_of(annotation.__forward_arg__, namespace)
    if isinstance(annotation, str):
        return _text_shapes(annotation, namespace)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    name = getattr(origin or annotation, "__name__", None) or str(origin or annotation)
    if origin in (typing.Union, types.UnionType):
        name = "Union"
    return _generic(name, arguments, namespace) if origin else _leaf(annotation)


def _text_shapes(text: str, namespace: Namespace) -> Shapes:
    """An annotation as text is read piece by piece: one name that does not resolve must not lose the others."""
    try:
        return _node_shapes(ast.parse(text.strip(), mode="eval").body, namespace)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()


def _node_shapes(node: ast.expr, namespace: Namespace) -> Shapes:
    if isinstance(node, ast.BinOp):
        return _node_shapes(node.left, namespace) | _node_shapes(node.right, namespace)
    if isinstance(node, ast.Constant):
        return shapes_of(node.value, namespace) if isinstance(node.value, str | None) else frozenset()
    if isinstance(node, ast.Subscript):
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = ast.unparse(node.value).rpartition(".")[2]
        literal = [item.value for item in items if isinstance(item, ast.Constant)]
        return _generic(name, literal if name == "Literal" else items, namespace)
    dotted = ast.unparse(node)
    live = _lookup(dotted, namespace)
    return shapes_of(live, namespace) if live is not None else _named(dotted.rpartition(".")[2])


def _lookup(dotted: str, namespace: Namespace) -> object:
    first, *rest = dotted.split(".")
    found = namespace.get(first, getattr(builtins, first, None))
    for part in rest:
        found = getattr(found, part, None)
    return None if isinstance(found, str) else found


def _generic(name: str, arguments: Iterable[object], namespace: Namespace) -> Shapes:
    """A subscripted type: its arguments are live types or, from text, syntax nodes."""
    if name == "Literal":
        values = tuple(arguments)
        texts = tuple(value for value in values if isinstance(value, str))
        return frozenset({Shape("choice", choices=texts)}) if texts else shapes_of_value(next(iter(values), None))
    if name not in _SEQUENCES | {"Union", "Optional", "Annotated"}:
        return _named(name)
    arguments = list(arguments)[:1] if name == "Annotated" else arguments
    parts = [_node_shapes(a, namespace) if isinstance(a, ast.expr) else shapes_of(a, namespace) for a in arguments]
    inner = Shapes().union(*parts)
    if name not in _SEQUENCES:
        return inner
    tupled = name in ("tuple", "Tuple")
    return frozenset(shape._replace(depth=shape.depth + 1, tupled=tupled) for shape in inner)


def _leaf(annotation: object) -> Shapes:
    if annotation in (list, tuple, collections.abc.Iterable, collections.abc.Sequence):
        return frozenset({Shape("any", 1, annotation is tuple)})
    if isinstance(annotation, type) and issubclass(annotation, str) and issubclass(annotation, Enum):
        return frozenset({Shape("choice", choices=tuple(member.value for member in annotation))})
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return frozenset({Shape("text")})
    return _named(getattr(annotation, "__name__", "") or str(annotation).rpartition(".")[2])


def _named(name: str) -> Shapes:
    if name == "PipelineImageInput":
        return frozenset({Shape("image"), Shape("image", 1)})
    leaf = "tensor" if name.endswith("Tensor") else _NAMED_LEAVES.get(name, "other")
    return frozenset({Shape(leaf)})


def shapes_of_value(value: object) -> Shapes:
    """The alternatives that a default value shows."""
    if isinstance(value, list | tuple):
        inner = Shapes().union(*(shapes_of_value(item) for item in value))
        return frozenset(shape._replace(depth=shape.depth + 1, tupled=isinstance(value, tuple)) for shape in inner)
    return _leaf(type(value)) if value is not None else frozenset()
