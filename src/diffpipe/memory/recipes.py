"""What a pipeline is made of, by the settings of its files alone, to be traced: no weight is fetched or read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.resources import files as package_files

from ..cache.store import Store
from ..catalog.plugins import float32_of_class
from ..catalog.rows import PipelineType
from ..core.build_spec import BuildSpec
from ..core.errors import DiffpipeError, Exit, NotFoundError, UsageError
from ..core.parsing import Fields, Misfit, parse_json
from ..core.tracing import Recipe, Settings
from ..sources import hub_client
from ..sources.pin import Pinned
from .recorded import of_repository, recorded
from .tables import place, reader

LARGEST = 1 << 20  # bytes of the file
# What a component's settings are called: models', schedulers', tokenizers' and processors'.
NAMES = (
    "config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip


def recipe(
    spec: BuildSpec, row: PipelineType, pipeline: str, store: Store, offline: bool, pinned: Callable[[], Pinned]
) -> Recipe:
    """The recipe of a build request. `pinned` gives its sources; where they cannot be had, a recorded one may do.

    Raises what pinning raises, and UsageError where a recorded one has a component replaced.
    """
    offline = hub_client.is_offline(offline)
    try:
        known = pinned()
    except DiffpipeError as error:
        away = error.exit_code == Exit.FAILED or (offline and isinstance(error, NotFoundError))
        instead = _recorded(spec, row) if away else None
        if instead is None:
            raise
        return instead
    layout = {name: where for name, where in known.layout.items() if name not in spec.without}
    configs = {}
    for name in layout:
        source, prefix = place(known.sources, name)
        read = reader(source, known.locations[source.role], store, offline)
        path = next((one for one in NAMES if f"{prefix}{one}" in source.files), None)
        configs[name] = read.config(f"{prefix}{path}") if path else {}
    return Recipe(pipeline, layout, configs, spec.dtype, row.float32 or float32_of_class(pipeline))


def _recorded(spec: BuildSpec, row: PipelineType) -> Recipe | None:
    """That of a well-known repository. Raises UsageError where a component of it is replaced."""
    model = of_repository(spec.model)
    if model is None:
        return None
    if spec.components:
        problem = f"nothing here says what {next(iter(spec.components))} is made of"
        raise UsageError(problem, "plan without --trace, or once with the network")
    name = next(name for name, one in recorded().items() if one is model)
    layout, configs = recorded_recipe(name)
    return Recipe(spec.pipeline or row.pipeline, layout, configs, spec.dtype, row.float32)


def recorded_recipe(name: str) -> tuple[Mapping[str, tuple[str, str]], Mapping[str, Settings]]:
    """The layout of a recorded model, and the settings of its components."""
    return _settings()[name]


@functools.cache
def _settings() -> Mapping[str, tuple[Mapping[str, tuple[str, str]], Mapping[str, Settings]]]:
    """Recorded model -> the library and class of each component, and its settings (tools/record_components.py)."""
    text = (package_files("diffpipe") / "memory" / "recorded_configs.json").read_text(encoding="utf-8")
    models = Fields(parse_json(text, LARGEST, "recorded_configs.json"))
    return {
        name: (_layout(models.object(name).object("layout")), _configs(models.object(name))) for name in models.names()
    }


def _layout(data: Fields) -> dict[str, tuple[str, str]]:
    found = {}
    for name in data.names():
        match data.texts(name):
            case (library, class_name):
                found[name] = library, class_name
            case _:
                raise Misfit(f"{name} has no library and class")
    return found


def _configs(model: Fields) -> dict[str, Settings]:
    configs = model.object("configs")
    return {name: configs.object(name).value for name in configs.names()}
