"""What diffpipe reads from the text of diffusers' pipelines, since nothing else says it. Tried with diffusers 0.42.1.

Nothing is run. Where the text is written another way, each of these finds nothing.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import textwrap
from typing import TYPE_CHECKING

from .seam import Seam

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    Pipeline = type[DiffusionPipeline]

FLUX = "diffusers/pipelines/flux/pipeline_flux.py"
OUTPUTS = Seam(
    "diffusers",
    "the output class that a pipeline's __call__ builds",
    buys="what a pipeline of diffpipe's `custom` provider makes: pictures, videos or sounds",
    without="a pipeline whose outputs are not known cannot be built",
    file=FLUX,
    text="return FluxPipelineOutput(",
)
SCHEDULE = Seam(
    "diffusers",
    "the sigmas and mu that a pipeline's __call__ passes to its scheduler",
    buys="a scheduler that does not take them is refused at the build",
    without="it fails at the first call",
    file=FLUX,
    text="sigmas = np.linspace(",
)
NOISING = Seam(
    "diffusers",
    "the method of a scheduler by which a pipeline noises a picture",
    buys="a scheduler without it is refused at the build",
    without="it fails at the first call",
    file="diffusers/pipelines/flux/pipeline_flux_img2img.py",
    text="self.scheduler.scale_noise(",
)
PASSES = Seam(
    "diffusers",
    "cache_context in a pipeline's __call__",
    buys="--step-cache is refused at the build for a pipeline that does not tell its passes apart",
    without="--step-cache is refused for every pipeline",
    file=FLUX,
    text='.cache_context("cond")',
)
CHECKS = Seam(
    "diffusers",
    "check_inputs of a pipeline",
    buys="a flag's smallest and largest value, and what it must be a multiple of, are known before anything is loaded",
    without="such values are refused by the pipeline itself, when it is called",
    file=FLUX,
    text="    def check_inputs(",
)
EXAMPLES = Seam(
    "diffusers",
    "export_to_video in the example of a pipeline's docstring",
    buys="the frames a second that a video model was made for",
    without="videos of classes that the catalogue does not know have its default",
    file="diffusers/pipelines/wan/pipeline_wan.py",
    text="export_to_video(output,",
)
ALPHA = Seam(
    "diffusers",
    "RGBA in a pipeline's call, or in the example of its docstring",
    buys="a transparent picture keeps its alpha where a pipeline takes it",
    without="transparent pictures are laid on white for every class that the catalogue does not know",
    file="diffusers/pipelines/qwenimage/pipeline_qwenimage_layered.py",
    text='.convert("RGBA")',
)
SEAMS = (OUTPUTS, SCHEDULE, NOISING, PASSES, CHECKS, EXAMPLES, ALPHA)


def output_fields(pipeline: Pipeline) -> tuple[str, ...]:
    """The fields of the output classes that `__call__` builds, or else, in pipelines that call others, that its
    docstring names. Empty where neither says."""
    from diffusers.pipelines import pipeline_utils

    call = inspect.unwrap(pipeline.__call__)
    if not inspect.isfunction(call):  # VersatileDiffusionPipeline has methods in its place
        return ()
    names = {**vars(pipeline_utils), **call.__globals__}
    documented = call.__doc__ or ""
    # What its code builds comes first: docstrings are copied from other pipelines.
    places = (inspect.getsource(call).replace(documented, ""), r"\b(\w+Output)\("), (documented, r"\b(\w+Output)\b")
    for text, pattern in places:
        classes = [names.get(name) for name in re.findall(pattern, text)]
        if fields := dict.fromkeys(name for c in classes for name in getattr(c, "__dataclass_fields__", ())):
            return tuple(fields)
    return ()


def example_fps(pipeline: Pipeline) -> float | None:
    """The frames a second that the example in the docstring of `__call__` writes its video with."""
    example = re.search(r"export_to_\w+\([^)]*?\bfps=(\d+(?:\.\d+)?)", pipeline.__call__.__doc__ or "")
    return float(example[1]) if example else None


def takes_alpha(pipeline: Pipeline) -> bool:
    """Whether a pipeline's pictures are RGBA, as its call makes them or its example gives them."""
    try:
        called = _call_source(pipeline)
    except (OSError, TypeError):  # a class without a file; VersatileDiffusionPipeline has methods in the call's place
        called = ""
    return '"RGBA"' in called or 'convert("RGBA")' in (pipeline.__call__.__doc__ or "")


def schedule_arguments(pipeline: Pipeline) -> set[str]:
    """Which of `sigmas` and `mu` a pipeline's `__call__` always passes to its scheduler's `set_timesteps`."""
    called = _call_source(pipeline)
    sigmas = re.search(r"^ *sigmas = (?!None|self\.)|set_timesteps\(sigmas=", called, re.MULTILINE)
    return ({"sigmas"} if sigmas else set()) | ({"mu"} if re.search(r"\bmu=(?!None)", called) else set())


def passes_shift(pipeline: Pipeline) -> bool:
    """Whether a pipeline's `__call__` computes a shift for its scheduler, always or where that shifts by size."""
    return bool(re.search(r"\bmu\b", _call_source(pipeline)))


def noising_methods(pipeline: Pipeline) -> set[str]:
    """The methods of its scheduler that a pipeline noises a picture with."""
    module = inspect.getmodule(pipeline)  # inspect.getsource of a class parses its whole module
    return set(re.findall(r"self\.scheduler\.(scale_noise|add_noise)\(", inspect.getsource(module) if module else ""))


def reads_setting(pipeline: Pipeline, name: str) -> bool:
    """Whether a pipeline's own code names a setting of its scheduler."""
    module = inspect.getmodule(pipeline)
    return bool(re.search(rf"\b{name}\b", inspect.getsource(module) if module else ""))


def otherwise(pipeline: Pipeline, argument: str) -> str:
    """What a pipeline's `__call__` takes where an argument is not given (`height = height or X`); "" where it does not
    say so."""
    found = re.search(rf"^ *{argument} = \(?{argument} or (.+)$", _call_source(pipeline), re.MULTILINE)
    return found[1].strip().removesuffix(")") if found else ""


def default_sample_size(pipeline: Pipeline) -> str:
    """What a pipeline's constructor sets its `default_sample_size` to; "" where it has none."""
    source = inspect.getsource(pipeline.__init__)
    found = re.search(r"self\.default_sample_size = (\d+|\([^)]*\)?[^)]*|[^\n]+)", source)
    return found[1].strip() if found else ""


def reads_guidance_embedding(pipeline: Pipeline) -> bool:
    """Whether a pipeline gives its guidance scale to a denoiser that was trained with it, and to no other."""
    return bool(re.search(r"if self\.transformer\.config\.guidance_embeds:", _call_source(pipeline)))


def separates_passes(pipeline: Pipeline) -> bool:
    """Whether a pipeline tells the passes of a step (with the prompt, without it) apart, as caches of steps need."""
    return "cache_context" in _call_source(pipeline)


def _call_source(pipeline: Pipeline) -> str:
    return inspect.getsource(inspect.unwrap(pipeline.__call__))


def check_inputs_body(pipeline: type) -> list[ast.stmt]:
    """The statements of a pipeline's `check_inputs`; [] where there is none, or none that can be read."""
    function = inspect.unwrap(getattr(pipeline, "check_inputs", None) or (lambda: None))
    code = function.__code__
    # inspect.getsource searches every module in sys.modules first; the code object already says where it is.
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:
        tree = ast.parse(textwrap.dedent("".join(inspect.getblock(lines))))
    except (SyntaxError, ValueError):
        return []
    return tree.body[0].body if tree.body and isinstance(tree.body[0], ast.FunctionDef) else []
