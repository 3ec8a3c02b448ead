"""Classes by name, from diffusers and transformers and from nowhere else."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ...core.parsing import Fields, Misfit, parse_json
from ...storage.opening import LARGEST_INDEX, read_regular
from ..seams import diffusers_seam
from .renamed import renamed

if TYPE_CHECKING:
    from diffusers import ConfigMixin, DiffusionPipeline
    from transformers import PreTrainedModel, ProcessorMixin, TokenizersBackend

    Pipeline = type[DiffusionPipeline]
    ComponentClass = type[ConfigMixin | PreTrainedModel | TokenizersBackend | ProcessorMixin]


# Stable Diffusion 3 makes zeros of what its T5 would say (_get_t5_prompt_embeds), and says nowhere that it may be null.
WITHOUT_T5 = frozenset({"text_encoder_3", "tokenizer_3"})
# What a part of a pipeline is one of: the classes that diffusers loads (LOADABLE_CLASSES of its
# pipelines/pipeline_loading_utils.py), but for whole pipelines. Known by name: to import them all takes time.
PARTS = frozenset(
    {
        "BaseGuidance",
        "FeatureExtractionMixin",
        "ImageProcessingMixin",
        "ModelMixin",
        "OnnxRuntimeModel",
        "PreTrainedModel",
        "PreTrainedTokenizerBase",
        "ProcessorMixin",
        "SchedulerMixin",
    }
)


def pipeline_class(name: str) -> Pipeline:
    """A pipeline class of the installed diffusers.

    Raises UsageError, with near names, if diffusers has no such pipeline.
    """
    import diffusers

    found = getattr(diffusers, name, None) if name.isidentifier() else None
    if isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline):
        return found
    near = get_close_matches(name, [known for known in dir(diffusers) if known.endswith("Pipeline")], n=3)
    raise UsageError(
        f"diffusers {diffusers.__version__} has no pipeline {name!r}",
        f"did you mean {' or '.join(near)}?" if near else "check the name, or install the diffusers that has it",
    )


def own_pipeline_class(folder: Path) -> Pipeline | None:
    """The class of a pipeline file that comes with a model, None where model_index.json does not list [module, class].

    Runs that file, so only for a build with --trust-remote-code. Raises UsageError if it cannot be loaded.
    """
    from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

    own = _own_class(folder / "model_index.json")
    if own is None:
        return None
    module, name = own
    try:
        found: Pipeline = get_class_from_dynamic_module(
            str(folder), f"{module}.py", class_name=name, local_files_only=True, trust_remote_code=True
        )
        return found
    except (OSError, ValueError, ImportError, AttributeError, SyntaxError) as error:
        raise UsageError(
            f"the model's own {module}.py could not be loaded: {first_line(error)}", "--traceback shows where"
        ) from error


def _own_class(index: Path) -> tuple[str, str] | None:
    """The [module, class] of a model_index.json. Raises UsageError for one that is damaged."""
    try:
        text = read_regular(index, LARGEST_INDEX)
        named = Fields(parse_json(text, LARGEST_INDEX, index.name)).value.get("_class_name")
    except OSError as error:
        problem = f"cannot read the model's {index.name}: {error.strerror}"
        raise UsageError(problem, "copy or fetch the model again") from error
    except Misfit as error:
        raise UsageError(f"the model's {error}", "copy or fetch the model again") from error
    match named:
        case [str(module), str(name)]:
            return module, name
        case [*_]:
            raise UsageError(f"the model's {index.name} names no module and class", "copy or fetch the model again")
    return None


def component_class(library: str, name: str) -> ComponentClass:
    """A component's class as model_index.json names it: from diffusers, transformers or a pipeline module of diffusers.

    One that transformers renamed is known by its old name too. Raises UsageError for any other place, a class that is
    not there, or one that is no part of a pipeline: a pipeline itself, or an Auto class, for which a file chooses.
    """
    diffusers_seam.register_deprecated(library)
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    try:
        found = getattr(importlib.import_module(module), renamed(library, name) or name)
    except (ImportError, AttributeError):
        found = None
    if isinstance(found, type):
        if _is_part(found) or diffusers_seam.missing_backends(found):
            return found
        raise UsageError(
            f"{name} in {library} is no part of a pipeline", "parts are models, schedulers, tokenizers and processors"
        )
    raise UsageError(
        f"there is no {name} in {library}", "install the versions of diffusers and transformers that have it"
    )


def _is_part(cls: type) -> bool:
    """Whether a class is one of PARTS; none but OnnxRuntimeModel is one itself."""
    libraries = ("diffusers", "transformers")
    return cls.__name__ not in PARTS - {"OnnxRuntimeModel"} and any(
        base.__name__ in PARTS and base.__module__.partition(".")[0] in libraries for base in cls.__mro__
    )


def check_names(pipeline: Pipeline, names: Iterable[str]) -> None:
    """Raises UsageError for the name of a component that a pipeline does not have."""
    expected = pipeline_parts(pipeline)[0]
    for name in names:
        if name not in expected:
            near = get_close_matches(name, sorted(expected), n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            hint = f"{meant}it has: {', '.join(sorted(expected))}"
            raise UsageError(f"{pipeline.__name__} has no component {name!r}", hint)


def missing_packages(part: type) -> list[str]:
    """The packages that a component's class needs and that are not installed.

    The libraries put a stand-in in the place of such a class; a processor of transformers that takes
    videos is there, but its part for videos is not.
    """
    videos = ["torchvision"] if "video_processor" in inspect.signature(part.__init__).parameters else []  # type: ignore[misc]
    absent = [name for name in videos if importlib.util.find_spec(name) is None]
    return [*diffusers_seam.missing_backends(part), *absent]


def pipeline_parts(pipeline: Pipeline) -> tuple[set[str], set[str]]:
    """The component names a pipeline's constructor takes, and those that it can do without."""
    parameters = {name: p for name, p in inspect.signature(pipeline.__init__).parameters.items() if name != "self"}
    names = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty or p.default is None}
    optional = {*diffusers_seam.optional_parts(pipeline), *(n for n, p in parameters.items() if p.default is None)}
    return names, optional | set(unsaid_optional(pipeline))


def unsaid_optional(pipeline: Pipeline) -> frozenset[str]:
    """The components that a pipeline can do without though its class does not say so: it has to be given None."""
    return WITHOUT_T5 if pipeline.__name__.startswith("StableDiffusion3") else frozenset()


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
