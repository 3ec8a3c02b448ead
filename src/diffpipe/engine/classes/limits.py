"""What a pipeline's own `check_inputs` rejects, read from its text: nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from ...core.flag import Flag
from ..seams.diffusers_source_seam import check_inputs_body


class Bound(NamedTuple):
    """The numbers that an argument may have, as far as is known: the fields of Flag of these names."""

    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None

    def over(self, other: Bound) -> Bound:
        """What either says; where both do, what this one says."""
        pairs = zip(self, other, strict=True)
        return Bound(*(own if own is not None else theirs for own, theirs in pairs))  # type: ignore[arg-type]

    def on(self, flag: Flag) -> Flag:
        """The flag, which may be given these numbers only."""
        minimum, maximum, multiple_of = self.over(Bound(flag.minimum, flag.maximum, flag.multiple_of))
        return replace(flag, minimum=minimum, maximum=maximum, multiple_of=multiple_of)


class Limits(NamedTuple):
    """What a pipeline's `check_inputs` rejects whatever the other arguments are.

    `bounds`: by argument. `needed`: arguments rejected as None when all the arguments named beside them are None too.
    """

    bounds: Mapping[str, Bound]
    needed: tuple[tuple[str, frozenset[str]], ...]

    def required(self, optional: frozenset[str]) -> set[str]:
        """Which arguments cannot be left out where only the `optional` others can be given."""
        return {name for name, others in self.needed if not optional & others}


def enforced_limits(pipeline: type) -> Limits:
    """The limits of a pipeline class; none where it has no `check_inputs` that can be read.

    Only checks that raise, stand alone and compare an argument with a number count: `if height % 16 != 0: raise`, not
    `if guidance_scale > 1 and self.config.is_distilled: raise`.
    """
    bounds: dict[str, Bound] = {}
    needed: list[tuple[str, frozenset[str]]] = []
    for test in _rejections(check_inputs_body(pipeline)):
        for alternative in test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else [test]:
            none = _all_none(alternative)
            needed += [(name, none - {name}) for name in sorted(none)]
            if found := _bound(alternative):
                name, bound = found
                bounds[name] = bound.over(bounds.get(name, Bound()))
    return Limits(bounds, tuple(needed))


def _rejections(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """The tests that alone lead to a raise; an `elif` counts while every branch before it raises."""
    for statement in body:
        while isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Raise):
            yield statement.test
            if len(statement.orelse) != 1:
                break
            statement = statement.orelse[0]


def _conditions(test: ast.expr) -> list[ast.expr]:
    return test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]


def _all_none(test: ast.expr) -> frozenset[str]:
    """{"prompt", "prompt_embeds"} for `prompt is None and prompt_embeds is None`; empty for any other test."""
    match [_none_name(condition, ast.Is) for condition in _conditions(test)]:
        case [*names] if all(names):
            return frozenset(names)
    return frozenset()


def _none_name(node: ast.expr, operator: type[ast.cmpop]) -> str:
    match node:
        case ast.Compare(ast.Name(name), [op], [ast.Constant(None)]) if isinstance(op, operator):
            return name
    return ""


def _bound(test: ast.expr) -> tuple[str, Bound] | None:
    """The argument that a rejecting comparison bounds: `x % 8 != 0`, `x < 0`, `x > 1`, and the same behind
    `x is not None and`."""
    conditions = [condition for condition in _conditions(test) if not _none_name(condition, ast.IsNot)]
    match conditions:
        case [ast.Compare(ast.BinOp(ast.Name(name), ast.Mod(), ast.Constant(int(step))), [ast.NotEq()], [zero])]:
            return (name, Bound(minimum=step, multiple_of=step)) if ast.unparse(zero) == "0" else None
        case [ast.Compare(ast.Name(name), [ast.Lt()], [ast.Constant(int() | float() as limit)])]:
            return name, Bound(minimum=limit)
        case [ast.Compare(ast.Name(name), [ast.Gt()], [ast.Constant(int() | float() as limit)])]:
            return name, Bound(maximum=limit)
    return None
