"""Which files of a diffusers folder a pipeline loads: settings, tokenizers, and one set of safetensors weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, TypeGuard, TypeVar

from ..core.errors import NotFoundError, UsageError
from ..core.source import CHECKPOINTS
from ..storage.disk import LONGEST_SHOWN

T = TypeVar("T")
Named = tuple[str, re.Match[str]]  # a file of weights, and what its name says

# The names diffusers and transformers load weights from (WEIGHTS_NAME in either): the others are for other tools.
WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[\w-]+?))?(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?(?:\.(?P<late>[\w-]+?))?"
    r"\.(?P<suffix>safetensors|bin)"
)
INDEX = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.[\w-]+?)?\.(?P<suffix>safetensors|bin)\.index(?:\.[\w-]+?)?\.json"
)
STEMS = {  # the names that each library looks for: WEIGHTS_NAME, SAFE_WEIGHTS_NAME and the like
    "diffusers": {"safetensors": "diffusion_pytorch_model", "bin": "diffusion_pytorch_model"},
    "transformers": {"safetensors": "model", "bin": "pytorch_model"},
}
MOST_COMPARED = 1000  # names with one that is not there: letter by letter
SETTINGS = frozenset({".json", ".txt", ".model", ".jinja"})
WEIGHTLESS = re.compile(r"Tokenizer|Processor|FeatureExtractor|Scheduler")


def nearest(path: str, names: Iterable[str]) -> list[str]:
    """Up to three files of weights whose names are like one that is not there."""
    known = (name for name in names if name.endswith(CHECKPOINTS) and len(name) <= LONGEST_SHOWN)
    return get_close_matches(path[:LONGEST_SHOWN], islice(known, MOST_COMPARED), n=3, cutoff=0.3)


def components_of(model_index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """name -> (library, class) of a model_index.json; components it leaves empty are left out."""
    return {
        name: (value[0], value[1])
        for name, value in model_index.items()
        if name.isidentifier() and not name.startswith("_") and is_class(value)
    }


def is_class(value: Any) -> TypeGuard[list[str]]:
    """Whether a value of a model_index.json is [library or module, class]; lists of other things are settings."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) and part for part in value)


def pipeline_files(
    names: Iterable[str],
    model_index: Mapping[str, Any],
    *,
    variant: str | None = None,
    without: Collection[str] = (),
    weightless: Collection[str] = (),
    allow_pickle: bool = False,
) -> list[str]:
    """The files of a diffusers folder that loading it reads, sorted.

    `without`: components that come from elsewhere. `weightless`: components of which only the settings are needed.
    Raises UsageError for pickled weights, NotFoundError for a component without weights or an unknown variant.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.partition("/")[0], []).append(name)
    chosen = ["model_index.json"]
    variants: set[str] = set()
    for component, (library, class_name) in components_of(model_index).items():
        if component in without:
            continue
        inside = [name for name in folders.get(component, ()) if "/" in name]
        if not inside:
            raise NotFoundError(
                f"the folder {component}, which model_index.json names, is missing",
                f"fetch the whole model, or replace the part with --component {component}=SOURCE",
            )
        chosen += [name for name in inside if is_setting(name)]
        if component not in weightless and needs_weights(inside, component, class_name):
            found = weights(inside, component, variant=variant, allow_pickle=allow_pickle, library=library)
            variants |= {match["variant"] or match["late"] for name in found if (match := _match(name))}
            chosen += found
    if variant and variant not in variants and not set(components_of(model_index)) <= set(without) | set(weightless):
        raise NotFoundError(f"no weights of variant {variant!r} here", "leave out --variant, or name one that exists")
    return sorted(set(chosen))


def needs_weights(inside: Collection[str], component: str, class_name: str) -> bool:
    """Whether a component is a model: it has a config.json and its class is no tokenizer, processor or scheduler."""
    return f"{component}/config.json" in inside and not WEIGHTLESS.search(class_name)


def without_weights(files: Mapping[str, T], components: Collection[str]) -> dict[str, T]:
    """A folder's files but for the weights of some components."""
    return {
        path: info for path, info in files.items() if PurePosixPath(path).parts[0] not in components or is_setting(path)
    }


def is_setting(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in SETTINGS and not INDEX.fullmatch(path.name) and not path.name.startswith(".")


def weights(
    inside: Collection[str], component: str, *, variant: str | None, allow_pickle: bool, library: str = ""
) -> list[str]:
    """One complete set of weights among a component's files, with its index when it is sharded.

    The variant's where the component has it, else the plain ones (as diffusers does); safetensors before pickles.
    `library`: the one that loads the component, which says by what name; a module of a pipeline may be of either.
    """
    matches = _of_library([(name, match) for name in inside if (match := _match(name))], component, library)
    for suffix in ("safetensors", "bin"):
        for wanted in dict.fromkeys((variant, None)):
            files = [
                (name, match)
                for name, match in matches
                if match["suffix"] == suffix and (match["variant"] or match["late"]) == wanted
            ]
            if files:
                if suffix == "bin" and not allow_pickle:
                    raise UsageError(
                        f"{component} has no safetensors weights, only pickled ones, which can run code when loaded",
                        "use a model with safetensors weights, or pass --allow-pickle if you trust its source",
                    )
                return _one_set(files, inside, component, suffix, wanted)
    raise NotFoundError(
        f"{component} has no weights" + (f" (nor any of variant {variant!r})" if variant else ""),
        "the folder is incomplete: fetch it again, or name the variant it has with --variant",
    )


def _of_library(files: list[Named], component: str, library: str) -> list[Named]:
    """Those with the name that a library looks for, where there are any. Raises UsageError where that is not known, and
    two sets are there: what is loaded must be what has its digest."""
    stems = {
        match["suffix"]: {one["stem"] for _, one in files if one["suffix"] == match["suffix"]} for _, match in files
    }
    two = {suffix for suffix, names in stems.items() if len(names) > 1}
    if two and library not in STEMS:
        raise UsageError(
            f"{component} has weights by two names, {' and '.join(sorted(stems[min(two)]))}",
            "remove those that are not the model's",
        )
    return [
        (name, match)
        for name, match in files
        if match["suffix"] not in two or match["stem"] == STEMS[library][match["suffix"]]
    ]


def _match(name: str) -> re.Match[str] | None:
    return WEIGHTS.fullmatch(PurePosixPath(name).name)


def _one_set(
    files: list[Named], inside: Collection[str], component: str, suffix: str, variant: str | None
) -> list[str]:
    """Shards or the single file: of both, diffusers' loader takes the shards, transformers' the single file."""
    single = [name for name, match in files if not match["shard"]]
    sharded = [(name, match) for name, match in files if match["shard"]]
    diffusers_stem = any(match["stem"] == "diffusion_pytorch_model" for _, match in files)
    if single and not (sharded and diffusers_stem):
        return single[:1]
    total = int(sharded[0][1]["shards"])
    if len({match["shard"] for _, match in sharded}) != total:
        raise NotFoundError(
            f"{component} has {len(sharded)} of its {total} weight files", "fetch the whole model again"
        )
    index = [
        name
        for name in inside
        if (match := INDEX.fullmatch(PurePosixPath(name).name))
        and match["suffix"] == suffix
        and match["stem"] == sharded[0][1]["stem"]
        and ((f".{variant}." in PurePosixPath(name).name) if variant else PurePosixPath(name).name.count(".") == 3)
    ]
    if not index:
        raise NotFoundError(f"the index of the {component} weight files is missing", "fetch the whole model again")
    return [name for name, _ in sharded] + index[:1]


def model_files(
    names: Iterable[str], *, variant: str | None = None, allow_pickle: bool = False, library: str = ""
) -> list[str]:
    """The files of a folder that holds one component alone, at its root (google/t5-v1_1-xxl, a ControlNet).

    `library`: see `weights`.
    """
    names = [name for name in names if "/" not in name]
    inside = [f"component/{name}" for name in names]
    chosen = [name for name in inside if is_setting(name)]
    if "component/config.json" in inside and any(_match(name) for name in names):
        chosen += weights(inside, "the component", variant=variant, allow_pickle=allow_pickle, library=library)
    return sorted(name.removeprefix("component/") for name in set(chosen))
