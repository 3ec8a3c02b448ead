"""A pipeline's `__call__` as Flags: types and defaults from the signature, help from the docstring, limits from the
pipeline's own `check_inputs`."""

from __future__ import annotations

import ast
import builtins
import collections.abc
import functools
import inspect
import json
import linecache
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple, cast

from ...catalog.arguments import ARGUMENTS, REQUIRED_MEDIA, UNCALLABLE, UNTYPED_MEDIA
from ...catalog.rows import FlagFields, PipelineType
from ...core.canonical import canonical_json
from ...core.flag import MEDIA_KINDS, Flag, FlagKind


def read_flags(pipeline_class: type, row: PipelineType | None = None) -> tuple[Flag, ...]:
    """Every argument of the class's `__call__` that fits a command line, in the order of the signature.

    What does not fit: embeddings, latents, callbacks, generators, tensors, what shapes the return value, and the
    pictures of IP-Adapters, which no pipeline can be built with yet. `row` has
    the last word: its `defaults` replace the signature's (an argument with a default is not required), its `flags`
    replace any field of a Flag, or take the flag away (None). A row that names a `kind` gives a flag to an argument
    that would not have had one, or to one that only the row's own engine code takes (those come last).

    Raises ValueError where the row speaks of an argument that the class does not take.
    """
    call = inspect.unwrap(pipeline_class.__call__)
    # Not inspect.getdoc: it would move an `Args:` on the first line to the margin of its own entries.
    docs = docstring_arguments(call.__doc__ or "")
    parameters = _parameters(call)
    limits = enforced_limits(pipeline_class)
    flags = {name: _read_flag(p, docs.get(name), call.__globals__) for name, p in parameters.items()}
    fitting = {name: _known(flag, limits) for name, flag in flags.items() if flag is not None}
    needed = {name for name, others in limits.needed if not fitting.keys() & others}
    needed |= {n for part, names in REQUIRED_MEDIA.items() if part in pipeline_class.__name__ for n in names}
    fitting = {name: _require(flag) if name in needed else flag for name, flag in fitting.items()}
    if row is None:
        return tuple(fitting.values())
    return _override(pipeline_class.__name__, list(parameters), fitting, row)


@functools.cache
def tuple_arguments(pipeline_class: type) -> frozenset[str]:
    """The arguments that must be passed as tuples, not lists (SDXL adds `original_size + crops_coords_top_left`)."""
    call = inspect.unwrap(pipeline_class.__call__)
    shapes = {name: _shapes(p.annotation, call.__globals__) for name, p in _parameters(call).items()}
    return frozenset(n for n, s in shapes.items() if s and all(shape.tupled for shape in s))


def unfit_arguments(pipeline_class: type) -> dict[str, str]:
    """The arguments without a flag that are not diffpipe's own to pass: name -> "tensor" for latents, embeddings and
    what else only a program computes, "object" for anything else that has no form on a command line."""
    call = inspect.unwrap(pipeline_class.__call__)
    flags = {flag.name for flag in read_flags(pipeline_class)}
    rest = {n: p for n, p in _parameters(call).items() if n not in flags and not _NEVER.fullmatch(n)}
    return {name: _unfit(p, call.__globals__) for name, p in rest.items()}


def _unfit(parameter: inspect.Parameter, namespace: Mapping[str, Any]) -> str:
    leaves = {shape.leaf for shape in _shapes(parameter.annotation, namespace)}
    return "tensor" if "tensor" in leaves or _TENSOR_NAMES.search(parameter.name) else "object"


def why_uncallable(pipeline_class: type) -> str:
    """Why no command line can call the pipeline: what it needs that has no flag, or a step before the call. "" where
    nothing stands in the way."""
    if said := UNCALLABLE.get(pipeline_class.__name__):
        return said
    needed = _required_unfit(pipeline_class)
    return f"needs {', '.join(needed)}, which another program must compute" if needed else ""


def _required_unfit(pipeline_class: type) -> tuple[str, ...]:
    """The arguments without a flag that the pipeline cannot do without."""
    unfit = unfit_arguments(pipeline_class)
    parameters = _parameters(inspect.unwrap(pipeline_class.__call__))
    bare = [name for name in unfit if parameters[name].default is inspect.Parameter.empty]
    checked = [n for n, others in enforced_limits(pipeline_class).needed if {n, *others} <= unfit.keys()]
    return tuple(dict.fromkeys(bare + checked))


def _parameters(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(call).parameters
    return {name: p for name, p in parameters.items() if name != "self" and p.kind not in variadic}


# Names that never fit, whatever their type: callback_steps is an int, callback_on_step_end_tensor_inputs a list.
# No pipeline can be built with an IP-Adapter yet: its pictures would lead nowhere.
_NEVER = re.compile(r"output_type|return_dict|generator|.*callback.*|.*ip_adapter.*|_.*")
_TENSOR_NAMES = re.compile(r"latents|embed")


def _read_flag(parameter: inspect.Parameter, doc: Documented | None, namespace: Mapping[str, Any]) -> Flag | None:
    """The flag of one parameter; None where it does not fit a command line."""
    name, required = parameter.name, parameter.default is inspect.Parameter.empty
    if _NEVER.fullmatch(name):
        return None
    default = None if required else parameter.default
    shapes = _shapes(parameter.annotation, namespace) or _value_shapes(default) or _shapes(doc and doc.type, namespace)
    if all(shape.leaf == "any" for shape in shapes) and default is not None:
        shapes = _value_shapes(default)
    kind = _kind(name, shapes)
    if kind is None:
        return None
    depths = {shape.depth for shape in shapes if shape.leaf == _LEAVES.get(kind, kind)} or {s.depth for s in shapes}
    return Flag(
        name=name,
        kind=kind,
        many=1 in depths and _repeatable(kind, depths),
        scalar=0 in depths or not _repeatable(kind, depths),
        required=required,
        default=_plain(default),
        help=doc.help if doc else "",
        choices=next((shape.choices for shape in shapes if shape.choices), ()),
    )


def _known(flag: Flag, limits: Limits) -> Flag:
    """The flag with what the catalogue knows of its name, then what the pipeline enforces."""
    known = ARGUMENTS.get(flag.name, FlagFields())
    text = flag.help or known.get("help", "")
    if flag.kind not in ("integer", "number"):
        return replace(flag, help=text)
    return replace(replace(flag, **known), **{"help": text, **limits.bounds.get(flag.name, {})})


def _require(flag: Flag) -> Flag:
    """The flag as required, where that is sure: `__call__` may fill in numbers before `check_inputs` sees them."""
    sure = flag.default is None and flag.kind in MEDIA_KINDS | {"text"}
    return replace(flag, required=flag.required or sure)


def _override(owner: str, order: list[str], flags: dict[str, Flag], row: PipelineType) -> tuple[Flag, ...]:
    added = [name for name, override in row.flags.items() if "kind" in (override or ()) and name not in flags]
    unknown = (row.flags.keys() | row.defaults.keys()) - flags.keys() - set(added)
    if unknown:
        raise ValueError(f"{row.name}: {owner} has no flag for {', '.join(sorted(unknown))}")
    every = {**flags, **{name: Flag(name=name, kind="text") for name in added}}
    position = {name: index for index, name in enumerate(order)}
    kept = [name for name in every if row.flags.get(name, {}) is not None]
    names = sorted(kept, key=lambda name: position.get(name, len(order)))
    return tuple(_override_flag(every[name], row) for name in names)


def _override_flag(flag: Flag, row: PipelineType) -> Flag:
    if flag.name in row.defaults:
        flag = replace(flag, default=_plain(row.defaults[flag.name]), required=False)
    return replace(flag, **(row.flags.get(flag.name) or {}))


def _plain(value: Any) -> Any:
    """A default as JSON holds it: tuples as lists, enumeration members as their values, None for what has no JSON."""
    try:
        return json.loads(canonical_json(value.value if isinstance(value, Enum) else value))
    except (TypeError, ValueError):
        return None


# --- Types -----------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """One alternative of an annotation: what it holds (a kind of flag, or tensor, array, any, other) and how many lists
    or tuples deep."""

    leaf: str
    depth: int = 0
    tupled: bool = False
    choices: tuple[str, ...] = ()


_LEAVES: Mapping[str, str] = {"mask": "image", "video": "image"}
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
# The order of preference where a union offers several: `PIL.Image.Image | str | Path` is an image file.
_PREFERENCE: tuple[FlagKind, ...] = ("image", "choice", "text", "number", "integer", "boolean", "json")


def _kind(name: str, shapes: Iterable[Shape]) -> FlagKind | None:
    leaves = {shape.leaf for shape in shapes}
    if leaves & {"image", "array"} and _TENSOR_NAMES.search(name):
        return None
    if "image" in leaves or ("array" in leaves and "video" in name):
        return _image_kind(name, {shape.depth for shape in shapes if shape.leaf in ("image", "array")})
    if leaves <= {"any", "tensor"} and name in UNTYPED_MEDIA:
        return cast(FlagKind, UNTYPED_MEDIA[name])
    kind = next((kind for kind in _PREFERENCE if kind in leaves), None)
    # A list of lists (GLIGEN's boxes) has no flag of its own, but it can be written as JSON.
    nested = kind is not None and min(shape.depth for shape in shapes if shape.leaf == kind) > 1
    return "json" if nested else kind


def _image_kind(name: str, depths: set[int]) -> FlagKind:
    """A mask that comes only as a list is one mask a frame: a video."""
    if "mask" in name and 0 in depths:
        return "mask"
    return "video" if re.search(r"video|frames|mask", name) else "image"


def _repeatable(kind: FlagKind, depths: set[int]) -> bool:
    """Whether a list means several values of one call: several prompts or masks are a batch, a video is one file."""
    return kind not in ("mask", "video", "audio", "json", "boolean") and not (kind == "text" and 0 in depths)


def _shapes(annotation: Any, namespace: Mapping[str, Any]) -> frozenset[Shape]:
    """The alternatives of an annotation, live or as text; None and what is missing add none."""
    if annotation in (None, types.NoneType, inspect.Parameter.empty):
        return frozenset()
    if isinstance(annotation, typing.ForwardRef):
        return _shapes(annotation.__forward_arg__, namespace)
    if isinstance(annotation, str):
        return _text_shapes(annotation, namespace)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    name = getattr(origin or annotation, "__name__", None) or str(origin or annotation)
    if origin in (typing.Union, types.UnionType):
        name = "Union"
    return _generic(name, arguments, namespace) if origin else _leaf(annotation)


def _text_shapes(text: str, namespace: Mapping[str, Any]) -> frozenset[Shape]:
    """An annotation as text is read piece by piece: one name that does not resolve must not lose the others."""
    try:
        return _node_shapes(ast.parse(text.strip(), mode="eval").body, namespace)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()


def _node_shapes(node: ast.expr, namespace: Mapping[str, Any]) -> frozenset[Shape]:
    if isinstance(node, ast.BinOp):
        return _node_shapes(node.left, namespace) | _node_shapes(node.right, namespace)
    if isinstance(node, ast.Constant):
        return _shapes(node.value, namespace) if isinstance(node.value, str | None) else frozenset()
    if isinstance(node, ast.Subscript):
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = ast.unparse(node.value).rpartition(".")[2]
        literal = [item.value for item in items if isinstance(item, ast.Constant)]
        return _generic(name, literal if name == "Literal" else items, namespace)
    dotted = ast.unparse(node)
    live = _lookup(dotted, namespace)
    return _shapes(live, namespace) if live is not None else _named(dotted.rpartition(".")[2])


def _lookup(dotted: str, namespace: Mapping[str, Any]) -> Any:
    first, *rest = dotted.split(".")
    found = namespace.get(first, getattr(builtins, first, None))
    for part in rest:
        found = getattr(found, part, None)
    return None if isinstance(found, str) else found


def _generic(name: str, arguments: Iterable[Any], namespace: Mapping[str, Any]) -> frozenset[Shape]:
    """A subscripted type: its arguments are live types or, from text, syntax nodes."""
    if name == "Literal":
        values = tuple(arguments)
        texts = tuple(value for value in values if isinstance(value, str))
        return frozenset({Shape("choice", choices=texts)}) if texts else _value_shapes(next(iter(values), None))
    if name not in _SEQUENCES | {"Union", "Optional", "Annotated"}:
        return _named(name)
    arguments = list(arguments)[:1] if name == "Annotated" else arguments
    parts = [_node_shapes(a, namespace) if isinstance(a, ast.expr) else _shapes(a, namespace) for a in arguments]
    inner = frozenset[Shape]().union(*parts)
    if name not in _SEQUENCES:
        return inner
    tupled = name in ("tuple", "Tuple")
    return frozenset(shape._replace(depth=shape.depth + 1, tupled=tupled) for shape in inner)


def _leaf(annotation: Any) -> frozenset[Shape]:
    if annotation in (list, tuple, collections.abc.Iterable, collections.abc.Sequence):
        return frozenset({Shape("any", 1, annotation is tuple)})
    if isinstance(annotation, type) and issubclass(annotation, str) and issubclass(annotation, Enum):
        return frozenset({Shape("choice", choices=tuple(member.value for member in annotation))})
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return frozenset({Shape("text")})
    return _named(getattr(annotation, "__name__", "") or str(annotation).rpartition(".")[2])


def _named(name: str) -> frozenset[Shape]:
    if name == "PipelineImageInput":
        return frozenset({Shape("image"), Shape("image", 1)})
    leaf = "tensor" if name.endswith("Tensor") else _NAMED_LEAVES.get(name, "other")
    return frozenset({Shape(leaf)})


def _value_shapes(value: Any) -> frozenset[Shape]:
    """The alternatives that a default value shows."""
    if isinstance(value, list | tuple):
        inner = frozenset[Shape]().union(*(_value_shapes(item) for item in value))
        return frozenset(shape._replace(depth=shape.depth + 1, tupled=isinstance(value, tuple)) for shape in inner)
    return _leaf(type(value)) if value is not None else frozenset()


# --- Docstrings ------------------------------------------------------------------------------------------------------


class Documented(NamedTuple):
    """What a docstring says of an argument: its type as written there (a hint at best), and one readable paragraph."""

    type: str
    help: str


_SECTION = re.compile(r"^([ \t]*)(?:Args|Arguments|Parameters)[ \t]*:[ \t]*$", re.MULTILINE)
_HEAD = re.compile(r"[`*]*(\w+)[`*]*\s*(?=[:(])")
_HELP_LENGTH = 200


def docstring_arguments(docstring: str) -> dict[str, Documented]:
    """What a Google-style docstring says of each argument. Never raises: a docstring is prose.

    The `Args:` section is cut out by its own indentation before anything else, because `replace_example_docstring`
    splices less indented examples into the pipelines' docstrings, and after that no common margin is left.
    """
    found: dict[str, Documented] = {}
    for section in _SECTION.finditer(docstring):
        for entry in _entries(_indented(docstring[section.end() :].splitlines(), len(section[1].expandtabs()))):
            name, documented = _read_entry(entry)
            found.setdefault(name, documented)
    return found


def _indent(line: str) -> int:
    expanded = line.expandtabs()
    return len(expanded) - len(expanded.lstrip())


def _indented(lines: Iterable[str], margin: int) -> Iterator[str]:
    for line in lines:
        if line.strip() and _indent(line) <= margin:
            return
        yield line


def _entries(lines: Iterator[str]) -> Iterator[list[str]]:
    """The section's entries: lines from a `name (type):` at the section's own margin to the next one."""
    margin, entry = None, list[str]()
    for line in lines:
        if margin is None and line.strip():
            margin = _indent(line)
        if margin is not None and _indent(line) <= margin and _HEAD.match(line.strip()):
            if entry:
                yield entry
            entry = [line.strip()]
        elif entry:
            entry.append(line.strip())
    if entry:
        yield entry


def _read_entry(lines: list[str]) -> tuple[str, Documented]:
    """The name, type and help of one entry: `name (type): text`, `name: (type): text` or `name: text`, where the type
    may run over several lines."""
    text = "\n".join(lines)
    head = _HEAD.match(text)
    assert head is not None
    kind, rest = _split_parenthesis(text[head.end() :].lstrip(": \n"))
    # `name (`A`), `list[A]`: text` closes the parenthesis too soon.
    rest = re.sub(r"^,[^:]*:", "", rest).lstrip(": \\\n")
    repeated = _HEAD.match(rest)
    if repeated and repeated[1] == head[1]:
        return _read_entry([rest])
    return head[1], Documented(_first_type(kind), _readable(rest))


def _split_parenthesis(text: str) -> tuple[str, str]:
    """The leading (balanced) parenthesis, without its brackets, and what follows it; "" where there is none."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[1:index], text[index + 1 :] if index else text
    return "", text


def _first_type(text: str) -> str:
    """`str` or `list[str]`, *optional*, defaults to x  ->  str | list[str]"""
    text = re.split(r",?\s*\*?optional|,?\s*defaults? to", text)[0]
    return re.sub(r"\s+or\s+|,\s+(?![^\[]*\])", " | ", text.replace("`", "").strip(" ,\n"))


def _readable(text: str) -> str:
    """The first paragraph as plain text, cut at a sentence's end near 200 characters."""
    paragraph = next((part for part in re.split(r"\n\s*\n|\n(?=[-*] )", text) if part.strip()), "")
    sentences = _sentences(_plain_text(paragraph))
    short = next(sentences, "")
    for sentence in sentences:
        # What only Python can pass is no help on a command line.
        if len(short) + len(sentence) >= _HELP_LENGTH or re.search(r"_embeds\b|[Tt]ensor", sentence):
            break
        short = f"{short} {sentence}"
    if len(short) <= _HELP_LENGTH * 1.5:
        return short
    return short[:_HELP_LENGTH].rpartition(" ")[0].rstrip(",;: ") + " …"


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for stop in re.finditer(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\betc\.)(?<!\bvs\.) (?=[A-Z\"'(])", text):
        yield text[start : stop.start()]
        start = stop.end()
    yield text[start:]


_MARKUP = (
    (re.compile(r"!?\[`~[\w.]*?(\w+)`\](?:\([^)]*\))?"), r"\1"),  # [`~pipelines.flux.FluxPipelineOutput`]
    (re.compile(r"!?\[([^\]\[]+)\]\([^)\s]*\)"), r"\1"),  # [text](address)
    (re.compile(r"\[`([^`]+)`\]"), r"\1"),  # [`ClassName`]
    (re.compile(r":\w+:`~?([^`]+)`"), r"\1"),  # :class:`ClassName`
    (re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{1,2}"), r"\1"),  # `text <address>`__
    (re.compile(r"`+"), ""),
    (re.compile(r"</?[A-Za-z][^<>]*>"), ""),
    (re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])(.+?)(?<=[^\s*])\1(?![\w*])"), r"\2"),  # *e.g.*, **not**
)


def _plain_text(text: str) -> str:
    """RST and Markdown as plain text, white space normalised."""
    text = " ".join(text.split())
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


# --- What check_inputs enforces --------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What a pipeline's `check_inputs` rejects whatever the other arguments are.

    `bounds`: fields of Flag by argument. `needed`: arguments rejected as None when all the arguments named beside them
    are None too.
    """

    bounds: Mapping[str, Mapping[str, Any]]
    needed: tuple[tuple[str, frozenset[str]], ...]


def enforced_limits(pipeline_class: type) -> Limits:
    """Read from the source of `check_inputs` (nothing is run); empty where there is none to read.

    Only checks that raise, stand alone and compare an argument with a number count: `if height % 16 != 0: raise`, not
    `if guidance_scale > 1 and self.config.is_distilled: raise`.
    """
    bounds: dict[str, dict[str, Any]] = {}
    needed: list[tuple[str, frozenset[str]]] = []
    for test in _rejections(_check_inputs_body(pipeline_class)):
        for alternative in test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else [test]:
            none = _all_none(alternative)
            needed += [(name, none - {name}) for name in sorted(none)]
            if bound := _bound(alternative):
                bounds.setdefault(bound[0], {}).update(bound[1])
    return Limits(bounds, tuple(needed))


def _check_inputs_body(pipeline_class: type) -> list[ast.stmt]:
    function = inspect.unwrap(getattr(pipeline_class, "check_inputs", None) or (lambda: None))
    code = function.__code__
    # inspect.getsource searches every module in sys.modules first; the code object already says where it is.
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:
        tree = ast.parse(textwrap.dedent("".join(inspect.getblock(lines))))
    except (SyntaxError, ValueError):
        return []
    return tree.body[0].body if tree.body and isinstance(tree.body[0], ast.FunctionDef) else []


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


def _bound(test: ast.expr) -> tuple[str, dict[str, Any]] | None:
    """The argument and the fields of Flag that a rejecting comparison sets: `x % 8 != 0`, `x < 0`, `x > 1`, and the
    same behind `x is not None and`."""
    conditions = [condition for condition in _conditions(test) if not _none_name(condition, ast.IsNot)]
    match conditions:
        case [ast.Compare(ast.BinOp(ast.Name(name), ast.Mod(), ast.Constant(int(step))), [ast.NotEq()], [zero])]:
            return (name, {"multiple_of": step, "minimum": step}) if ast.unparse(zero) == "0" else None
        case [ast.Compare(ast.Name(name), [ast.Lt()], [ast.Constant(int() | float() as limit)])]:
            return name, {"minimum": limit}
        case [ast.Compare(ast.Name(name), [ast.Gt()], [ast.Constant(int() | float() as limit)])]:
            return name, {"maximum": limit}
    return None
