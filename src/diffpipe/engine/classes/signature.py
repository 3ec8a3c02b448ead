"""A pipeline's `__call__` as Flags: types and defaults from the signature, help from the docstring, limits from the
pipeline's own `check_inputs`."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Literal, NamedTuple, cast

from ...catalog.arguments import ARGUMENTS, REQUIRED_MEDIA, UNCALLABLE, UNTYPED_MEDIA
from ...catalog.rows import FlagFields, PipelineType
from ...core.canonical import JsonValue, canonical_json
from ...core.flag import MEDIA_KINDS, Flag, FlagKind
from ..seams.diffusers_source_seam import takes_alpha
from .docstrings import Documented, docstring_arguments
from .limits import Bound, Limits, enforced_limits
from .shapes import Namespace, Shapes, shapes_of, shapes_of_value

# What diffpipe passes itself, so that a user cannot: callback_steps is an int, callback_on_step_end_tensor_inputs a
# list. No pipeline can be built with an IP-Adapter yet: its pictures would lead nowhere.
OURS = r"output_type|return_dict|generator|.*callback.*|.*ip_adapter.*"
UNSETTABLE = re.compile(rf"{OURS}|.*(embeds|latents)")
NEVER = re.compile(rf"{OURS}|_.*")  # names that never fit a flag, whatever their type
TENSOR_NAMES = re.compile(r"latents|embed")


class Call(NamedTuple):
    """A pipeline's `__call__`: its parameters by name, its docstring, and the names of the module it stands in."""

    parameters: Mapping[str, inspect.Parameter]
    docstring: str
    namespace: Namespace

    def shapes(self, name: str) -> Shapes:
        """What the annotation of a parameter lets it be."""
        return shapes_of(self.parameters[name].annotation, self.namespace)


def call_of(pipeline: type) -> Call:
    """A pipeline's `__call__`, without self and what gathers any others."""
    call = inspect.unwrap(pipeline.__call__)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(call).parameters
    fixed = {name: p for name, p in parameters.items() if name != "self" and p.kind not in variadic}
    # Not inspect.getdoc: it would move an `Args:` on the first line to the margin of its own entries.
    return Call(fixed, call.__doc__ or "", getattr(call, "__globals__", {}))  # the base class has no call of its own


def read_flags(pipeline: type, row: PipelineType | None = None) -> tuple[Flag, ...]:
    """Every argument of the class's `__call__` that fits a command line, in the order of the signature.

    What does not fit: embeddings, latents, callbacks, generators, tensors, what shapes the return value, and the
    pictures of IP-Adapters, which no pipeline can be built with yet. `row` has
    the last word: its `defaults` replace the signature's (an argument with a default is not required), its `flags`
    replace any field of a Flag, or take the flag away (None). A row that names a `kind` gives a flag to an argument
    that would not have had one, or to one that only the row's own engine code takes (those come last).

    Raises ValueError where the row speaks of an argument that the class does not take.
    """
    call, limits = call_of(pipeline), enforced_limits(pipeline)
    documented = docstring_arguments(call.docstring)
    flags = {}
    for name in call.parameters:
        if flag := _read_flag(call, name, documented.get(name, Documented("", ""))):
            known = _known(flag, limits)
            flags[name] = replace(known, mode="RGBA") if flag.kind == "image" and takes_alpha(pipeline) else known
    for name in flags.keys() & _required(pipeline, limits, frozenset(flags)):
        flags[name] = _require(flags[name])
    return _override(pipeline.__name__, call, flags, row) if row else tuple(flags.values())


@functools.cache
def tuple_arguments(pipeline: type) -> frozenset[str]:
    """The arguments that must be passed as tuples, not lists (SDXL adds `original_size + crops_coords_top_left`)."""
    call = call_of(pipeline)
    shapes = {name: call.shapes(name) for name in call.parameters}
    return frozenset(name for name, found in shapes.items() if found and all(shape.tupled for shape in found))


# --- Arguments without a flag ---


def settable(pipeline: type) -> tuple[str, ...]:
    """The names of the call arguments a user may set, flags or not."""
    return tuple(name for name in call_of(pipeline).parameters if not UNSETTABLE.fullmatch(name))


def unfit_arguments(pipeline: type) -> dict[str, Literal["tensor", "object"]]:
    """The arguments without a flag that are not diffpipe's own to pass: name -> "tensor" for latents, embeddings and
    what else only a program computes, "object" for anything else that has no form on a command line."""
    call, flags = call_of(pipeline), {flag.name for flag in read_flags(pipeline)}
    rest = [name for name in call.parameters if name not in flags and not NEVER.fullmatch(name)]
    return {name: "tensor" if _is_tensor(call, name) else "object" for name in rest}


def _is_tensor(call: Call, name: str) -> bool:
    return bool(TENSOR_NAMES.search(name)) or any(shape.leaf == "tensor" for shape in call.shapes(name))


def why_uncallable(pipeline: type) -> str:
    """Why no command line can call the pipeline: what it needs that has no flag, or a step before the call. "" where
    nothing stands in the way."""
    if reason := UNCALLABLE.get(pipeline.__name__):
        return reason
    if not inspect.isfunction(inspect.unwrap(pipeline.__call__)):
        return "has no call of its own"
    needed = _required_unfit(pipeline)
    return f"needs {', '.join(needed)}, which another program must compute" if needed else ""


def _required_unfit(pipeline: type) -> tuple[str, ...]:
    """The arguments without a flag that the pipeline cannot do without."""
    unfit, parameters = unfit_arguments(pipeline), call_of(pipeline).parameters
    bare = [name for name in unfit if parameters[name].default is inspect.Parameter.empty]
    checked = [n for n, others in enforced_limits(pipeline).needed if {n, *others} <= unfit.keys()]
    return tuple(dict.fromkeys(bare + checked))


# --- One flag ---


def _read_flag(call: Call, name: str, documented: Documented) -> Flag | None:
    """The flag of one parameter; None where it does not fit a command line."""
    if NEVER.fullmatch(name):
        return None
    given = call.parameters[name].default
    required = given is inspect.Parameter.empty
    default = None if required else given
    shapes = call.shapes(name) or shapes_of_value(default) or shapes_of(documented.type or None, call.namespace)
    if all(shape.leaf == "any" for shape in shapes) and default is not None:
        shapes = shapes_of_value(default)
    kind = _kind(name, shapes)
    if kind is None:
        return None
    many, scalar = _many_and_scalar(kind, shapes)
    return Flag(
        name=name,
        kind=kind,
        many=many,
        scalar=scalar,
        required=required,
        default=_as_json(default),
        help=documented.help,
        choices=next((shape.choices for shape in shapes if shape.choices), ()),
    )


# The order of preference where a union offers several: `PIL.Image.Image | str | Path` is an image file.
_PREFERENCE: tuple[FlagKind, ...] = ("image", "choice", "text", "number", "integer", "boolean", "json")


def _kind(name: str, shapes: Shapes) -> FlagKind | None:
    leaves = {shape.leaf for shape in shapes}
    if leaves & {"image", "array"} and TENSOR_NAMES.search(name):
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


def _many_and_scalar(kind: FlagKind, shapes: Shapes) -> tuple[bool, bool]:
    """Whether several values may be given for one call, and whether one is passed bare.

    Several prompts or masks are a batch, and the list of a video's frames is one file.
    """
    leaf = "image" if kind in ("mask", "video") else kind
    depths = {shape.depth for shape in shapes if shape.leaf == leaf} or {shape.depth for shape in shapes}
    if kind in ("mask", "video", "audio", "json", "boolean") or (kind == "text" and 0 in depths):
        return False, True
    return 1 in depths, 0 in depths


def _as_json(value: object) -> JsonValue:
    """A default as JSON holds it: tuples as lists, enumeration members as their values, None for what has no JSON."""
    try:
        found: JsonValue = json.loads(canonical_json(value.value if isinstance(value, Enum) else value))
        return found
    except (TypeError, ValueError):
        return None


# --- What else is known of a flag ---


def _known(flag: Flag, limits: Limits) -> Flag:
    """The flag with what the catalogue knows of its name, then what the pipeline enforces."""
    known = ARGUMENTS.get(flag.name, FlagFields())
    text = flag.help or known.get("help", "")
    if flag.kind not in ("integer", "number"):
        return replace(flag, help=text)
    return limits.bounds.get(flag.name, Bound()).on(replace(replace(flag, **known), help=text))


def _required(pipeline: type, limits: Limits, names: frozenset[str]) -> set[str]:
    """What the pipeline's checks need, as far as these arguments can be given, and what its class is known to."""
    media = {name for part, needed in REQUIRED_MEDIA.items() if part in pipeline.__name__ for name in needed}
    return limits.required(names) | media


def _require(flag: Flag) -> Flag:
    """The flag as required, where that is sure: `__call__` may fill in numbers before `check_inputs` sees them."""
    sure = flag.default is None and flag.kind in MEDIA_KINDS | {"text"}
    return replace(flag, required=flag.required or sure)


def _override(owner: str, call: Call, flags: Mapping[str, Flag], row: PipelineType) -> tuple[Flag, ...]:
    added = [name for name, override in row.flags.items() if "kind" in (override or ()) and name not in flags]
    unknown = (row.flags.keys() | row.defaults.keys()) - flags.keys() - set(added)
    if unknown:
        raise ValueError(f"{row.name}: {owner} has no flag for {', '.join(sorted(unknown))}")
    every = {**flags, **{name: Flag(name=name, kind="text") for name in added}}
    kept = [name for name in every if row.flags.get(name, {}) is not None]
    position = {name: index for index, name in enumerate(call.parameters)}
    names = sorted(kept, key=lambda name: position.get(name, len(position)))
    return tuple(_override_flag(every[name], row) for name in names)


def _override_flag(flag: Flag, row: PipelineType) -> Flag:
    if flag.name in row.defaults:
        flag = replace(flag, default=_as_json(row.defaults[flag.name]), required=False)
    return replace(flag, **(row.flags.get(flag.name) or {}))
