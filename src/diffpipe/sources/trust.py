"""What runs code when it is loaded, and is refused without the user's consent: pickles, classes of the model's own."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.build_spec import BuildSpec
from ..core.errors import UsageError
from ..core.parsing import Fields, Misfit, parse_json
from ..core.source import CHECKPOINTS, PICKLES, Role, Source, file_of, layout_of
from ..storage.disk import shortened
from ..storage.opening import LARGEST_INDEX, LARGEST_TEXT, read_regular
from . import model_files, settings_files

WHOLE = ("Pipeline", "PipelineBlocks")  # diffusers would load these as parts, and what their own model_index.json names
PARTS = "parts are models, schedulers, tokenizers and processors"


def reader(source: Source, location: str) -> Callable[[str], str]:
    """Reads the text of a source's files on this machine."""
    return lambda path: read_regular(file_of(source, location, path), LARGEST_TEXT).decode()


def check_local(sources: Sequence[Source], locations: Mapping[Role, str], *, trusted: bool) -> None:
    """Raises UsageError for settings on this machine that must not reach a library; those of the hub are read later."""
    for source in sources:
        if source.kind != "hub" and locations[source.role]:
            settings_files.check(source, layout_of(sources), reader(source, locations[source.role]), trusted=trusted)


def refuse_code(source: Source, location: str, classes: Mapping[str, tuple[str, str]], trust_remote_code: bool) -> None:
    """What pinning a folder refuses, for one that came by another way: see `model_index`, `settings_files.check`.

    `classes`: those that the pipeline's components are loaded as. Raises UsageError.
    """
    read = reader(source, location)
    if "model_index.json" in source.files:
        spec = BuildSpec("", "", source.label, trust_remote_code=trust_remote_code)
        index = model_index(read("model_index.json"), source.label, source.files, spec)
        classes = {**classes, **model_files.components_of(index)}  # what diffusers goes by, whatever a manifest says
    settings_files.check(source, classes, read, trusted=trust_remote_code)


def check_suffix(name: str, allow_pickle: bool) -> None:
    """Raises UsageError for a pickled file that is not allowed, for no checkpoint, or one that cannot be read."""
    path = PurePosixPath(name)
    if path.suffix in PICKLES and not allow_pickle:
        raise UsageError(
            f"{path.name} is a pickled checkpoint, which can run code when loaded",
            "use a .safetensors file, or pass --allow-pickle if you trust its source",
        )
    if path.suffix not in CHECKPOINTS:
        raise UsageError(f"{path.name} is no checkpoint", f"known endings: {' '.join(CHECKPOINTS)}")
    if path.suffix == ".gguf" and not importlib.util.find_spec("gguf"):
        raise UsageError(f"{path.name} needs the package gguf", "pip install 'diffpipe[gguf]'")


def model_index(text: str, model: str, names: Collection[str], spec: BuildSpec) -> dict[str, Any]:
    """A folder's model_index.json, refused where loading it would run code from the folder.

    diffusers runs NAME/*.py when a component is listed with a module of the folder, and a pipeline.py when the class is
    listed as [module, class].
    """
    try:
        index = Fields(parse_json(text, LARGEST_INDEX, finite=False)).value
    except Misfit:
        raise UsageError(f"the model_index.json of {model} is no JSON object", "fetch the model again") from None
    named = index.get("_class_name")
    if not isinstance(named, str) and not (model_files.is_class(named) and all(part.isidentifier() for part in named)):
        raise UsageError(f"the model_index.json of {model} names no pipeline class", "fetch the model again")
    if isinstance(named, list) and not spec.trust_remote_code:
        raise UsageError(
            f"{model} wants to run pipeline code of its own", "read it, then pass --trust-remote-code if you trust it"
        )
    strange = {library for library, _ in model_files.components_of(index).values()} - loadable_libraries()
    if strange:
        raise UsageError(
            f"{model} names the library {shortened(sorted(strange)[0])!r}, which diffusers does not load from",
            "diffpipe loads folders made of diffusers and transformers parts only",
        )
    for name, (library, kind) in model_files.components_of(index).items():
        if not kind.isidentifier() or kind.startswith("_") or kind.endswith(WHOLE):
            raise UsageError(
                f"{model} names {shortened(kind)} in {library} for {name}, which is no part of a pipeline", PARTS
            )
        if f"{name}/{library}.py" in names and not spec.trust_remote_code:
            raise UsageError(
                f"{model} wants to run code of its own for {name}",
                "read it, then pass --trust-remote-code if you trust it",
            )
    return index


@functools.cache
def loadable_libraries() -> frozenset[str]:
    """What a model_index.json may name: diffusers, transformers, and the modules of diffusers' own pipelines."""
    spec = importlib.util.find_spec("diffusers")
    root = Path(spec.origin).parent / "pipelines" if spec and spec.origin else Path()
    own = {path.name for folder in (root, root / "deprecated") for path in folder.iterdir() if path.is_dir()}
    return frozenset({"diffusers", "transformers"} | own)
