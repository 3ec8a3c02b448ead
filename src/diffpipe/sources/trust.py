"""What runs code when it is loaded, and is refused without the user's consent: pickles, classes of the model's own."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.build_spec import BuildSpec
from ..core.errors import UsageError
from ..core.source import CHECKPOINTS, PICKLES, Source
from . import model_files

AUTO_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def refuse_code(source: Source, folder: Path, classes: Mapping[str, tuple[str, str]], trust_remote_code: bool) -> None:
    """What pinning a folder refuses, for one that came by another way: see `model_index`, `refuse_own_classes`.

    `classes`: those that the pipeline's components are loaded as. Raises UsageError.
    """

    def read(path: str) -> str:
        return (folder / path).read_text(encoding="utf-8", errors="replace")

    if "model_index.json" in source.files:
        spec = BuildSpec("", "", source.label, trust_remote_code=trust_remote_code)
        model_index(read("model_index.json"), source.label, source.files, spec)
    if trust_remote_code or source.single:
        return
    index = {name: list(pair) for name, pair in classes.items()}
    refuse_own_classes(index, source.label, source.files, read)
    name = source.role.name
    if source.role.kind == "component" and name in index:
        inside = {path.removeprefix(f"{source.subfolder}/"): path for path in source.files}
        files = {f"{name}/{path}": whole for path, whole in inside.items()}
        refuse_own_classes({name: index[name]}, source.label, files, lambda path: read(files[path]))


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


def model_index(text: str, model: str, names: Iterable[str], spec: BuildSpec) -> dict[str, Any]:
    """A folder's model_index.json, refused where loading it would run code from the folder.

    diffusers runs NAME/*.py when a component is listed with a module of the folder, and a pipeline.py when the class is
    listed as [module, class].
    """
    try:
        index = json.loads(text)
        if not isinstance(index, dict):
            raise ValueError
    except (ValueError, RecursionError):
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
            f"{model} names the library {sorted(strange)[0]!r}, which diffusers does not load from",
            "diffpipe loads folders made of diffusers and transformers parts only",
        )
    return index


def refuse_own_classes(
    index: Mapping[str, Any], model: str, names: Collection[str], read: Callable[[str], str]
) -> None:
    """Raises UsageError where a class would be looked up in code of the model's own.

    transformers' Auto classes do that where a configuration has an auto_map; they would ask at the terminal first.
    """
    parts = model_files.components_of(index).items()
    for name in (name for name, (library, kind) in parts if library == "transformers" and kind.startswith("Auto")):
        for path in (f"{name}/{file}" for file in AUTO_CONFIGS):
            if path in names and '"auto_map"' in read(path):
                raise UsageError(
                    f"{model} wants to run code of its own for {name}",
                    "read it, then pass --trust-remote-code if you trust it",
                )


@functools.cache
def loadable_libraries() -> frozenset[str]:
    """What a model_index.json may name: diffusers, transformers, and the modules of diffusers' own pipelines."""
    spec = importlib.util.find_spec("diffusers")
    root = Path(spec.origin).parent / "pipelines" if spec and spec.origin else Path()
    own = {path.name for folder in (root, root / "deprecated") for path in folder.iterdir() if path.is_dir()}
    return frozenset({"diffusers", "transformers"} | own)
