"""diffpipe build PROVIDER: one sub-command a provider, plug-ins included."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from ..catalog.plugins import providers
from ..catalog.rows import PipelineType, Provider
from ..catalog.schedulers import every_scheduler, schedulers_of
from ..core.build_spec import BuildSpec, Placement, Speed
from ..core.choices import AttentionBackend, CpuOffload, Dtype, Memory, Quantize, QuantizeBackend, StepCache
from ..core.errors import DiffpipeError, UsageError
from ..core.flag import MEDIA_KINDS
from ..memory import machine
from ..storage.opening import LARGEST_TEXT, read_regular
from . import output, tree
from .flags import option, parse_json, reporting, with_parameters

if TYPE_CHECKING:
    from ..building.build import Built


def make() -> Any:
    rows = {name: _title(provider) for name, provider in providers().items()}
    return tree.group("build", "Resolve, check and name a pipeline, and keep it in the cache.", lambda: rows, _make)


def _title(provider: Provider) -> str:
    types = ", ".join(row.title for row in provider.types)
    return f"{provider.title}{' (legacy)' if provider.legacy else ''}: {types}"


def _make(name: str) -> Any:
    provider = providers().get(name)
    if provider is None:
        return None

    def function(**values: Any) -> None:
        _build(provider, values)

    return tree.command(name, with_parameters(function, parameters(provider)), _help(provider))


def _help(provider: Provider) -> str:
    lines = [f"Build {provider.title}."]
    for row in provider.types:
        repositories = ", ".join(row.repositories) or "any: name it with --model"
        lines.append(f"{row.name}: {row.pipeline or 'the class of the folder, or --class'}. Models: {repositories}.")
        if row.notes:
            lines.append(row.notes)
    return "\n\n".join(lines)


def _devices(incomplete: str) -> list[str]:
    return [name for name in machine.names() if name.startswith(incomplete)]


def _components(ctx: typer.Context, incomplete: str) -> list[str]:
    """NAME= for every component of the local folder that --model names, else of the pipeline of the provider's name."""
    from ..cache.store import Store

    try:
        index = json.loads(read_regular(Path(ctx.params.get("model") or "", "model_index.json"), LARGEST_TEXT))
        names = [name for name, value in index.items() if isinstance(value, list)]
    except (OSError, ValueError, AttributeError, RecursionError):  # a repository, a single file, or no such folder
        try:
            names = [part.name for part in Store().find(ctx.info_name or "").manifest().components]
        except DiffpipeError:
            names = []
    return [f"{name}=" for name in names if name.startswith(incomplete)]


def _schedulers(ctx: typer.Context, incomplete: str) -> list[str]:
    """The scheduler classes that fit the chosen type's pipeline; every one where the model says the class."""
    provider = providers().get(ctx.info_name or "")
    row = provider.type(ctx.params.get("type")) if provider else None
    names = schedulers_of(row.pipeline) if row and row.pipeline else every_scheduler()
    return [name for name in names if name.startswith(incomplete)]


MODEL, CHANGES, MEMORY, SPEED, BUILD = "Model", "Changes", "Memory", "Speed", "Build"

# What every provider's build takes, besides what depends on its rows.
SOURCES = [
    option("revision", str | None, None, "Commit, branch or tag of the repository.", panel=MODEL, metavar="REVISION"),
    option(
        "variant", str | None, None,
        "Load the weights of this variant, for example fp16.", panel=MODEL, metavar="VARIANT",
    ),
    option(
        "config", str | None, None,
        "For a single-file checkpoint: the repository or folder its settings and missing parts come from. Default: the "
        "provider's first model.", panel=MODEL, metavar="SOURCE",
    ),
]  # fmt: skip
COMMON = [
    option(
        "component", list[str] | None, None,
        "Take a component from elsewhere. May be repeated.", panel=CHANGES, metavar="NAME=SOURCE[@REVISION]",
        autocompletion=_components,
    ),
    option(
        "lora", list[str] | None, None,
        "Fuse a LoRA: repository, repository/file or local file. May be repeated. Where a model has two denoisers "
        "(Wan 2.2), the file's name or DENOISER= says which it is for.", panel=CHANGES,
        metavar="[DENOISER=]SOURCE[@SCALE]",
    ),
    option(
        "lora_partial", bool, False,
        "Take LoRAs of which only a part can be applied, and say what is left out. Otherwise they are refused.",
        "--lora-partial", panel=CHANGES,
    ),
    option(
        "scheduler", str | None, None,
        "Another scheduler class of diffusers, set up as the shipped one.", panel=CHANGES, metavar="CLASS",
        autocompletion=_schedulers,
    ),
    option(
        "scheduler_config", str | None, None,
        "Scheduler settings, merged onto the shipped ones.", panel=CHANGES, metavar="JSON",
    ),
    option(
        "device", str, "auto",
        "Where it runs: auto, cpu, cuda, cuda:1, mps, xpu, or another device that torch has here.", panel=CHANGES,
        metavar="DEVICE",
        autocompletion=_devices,
    ),
    option(
        "memory", Memory, "manual",
        "manual: exactly the switches below. auto: the fastest way that is predicted to fit the memory that is free, "
        "with the switches given kept. diffpipe plan shows the choice and every other way.", panel=MEMORY,
    ),
    option(
        "cpu_offload", CpuOffload, "none",
        "Keep the weights in host memory. model: one component at a time on the device; needs room for the largest; "
        "the first to try. group: a block at a time, copied while the last one works; needs little room and fast host "
        "memory for all weights. sequential: a layer at a time; needs least and is slowest by far.", panel=MEMORY,
    ),
    option(
        "layerwise_casting", bool, False,
        "Store the denoiser's weights in 8 bits (fp8 e4m3fn) and compute in the dtype: half its memory, a little "
        "slower, results nearly the same. Where quantization is not wanted; not together with it.",
        "--layerwise-casting", panel=MEMORY,
    ),
    option(
        "vae_tiling", bool, False,
        "Decode in overlapping tiles: large pictures need no more memory than small ones; a little slower, seams are "
        "possible. When memory runs out at the end of a run.", "--vae-tiling", panel=MEMORY,
    ),
    option(
        "vae_slicing", bool, False,
        "Decode the samples of a batch one after another: less memory, hardly slower, the same results. For batches.",
        "--vae-slicing", panel=MEMORY,
    ),
    option(
        "attention_slicing", bool, False,
        "Compute attention in parts. With torch's own attention, which every pipeline here uses, it saves nothing and "
        "is several times slower: only for devices without it.", "--attention-slicing", panel=MEMORY,
    ),
    option(
        "device_memory", str | None, None,
        "Plan for this much memory instead of what is free, for example 12GiB. With --memory auto.", panel=MEMORY,
        metavar="SIZE",
    ),
    option(
        "quantize", Quantize, "none",
        "Store the denoiser and text encoders with fewer bits. fp8 and int8: half of bfloat16's memory, results nearly "
        "the same; int4: a quarter, results differ visibly. Steps take somewhat longer. For models that do not fit.",
        panel=MEMORY,
    ),
    option(
        "quantize_backend", QuantizeBackend, "quanto",
        "The library that quantizes. torchao: pip install 'diffpipe[torchao]'; no int4.", panel=MEMORY,
    ),
    option(
        "quantize_components", str | None, None,
        "Which components, separated by commas. Default: the denoisers and text encoders.", panel=MEMORY,
        metavar="NAME,...",
    ),
    option(
        "compile", bool, False,
        "Compile the denoiser's repeated blocks at their first use: a minute then, faster steps after. For many "
        "results of one size.", "--compile", panel=SPEED,
    ),
    option(
        "attention_backend", AttentionBackend | None, None,
        "What computes attention. Default: torch's own choice. flash, flash-3, sage and xformers need their package.",
        panel=SPEED,
    ),
    option(
        "step_cache", StepCache | None, None,
        "Reuse what earlier steps computed: faster, and the results differ. first-block: where the first block's "
        "output hardly changed. taylorseer: extrapolate. pyramid: attention alone.", panel=SPEED,
    ),
    option(
        "no_safety_checker", bool, False,
        "Build without the model's safety checker, which makes pictures black that it takes for unsafe. What is made "
        "then is yours to check.", "--no-safety-checker", panel=CHANGES,
    ),
    option(
        "allow_pickle", bool, False,
        "Load pickled weights, which can run code: only from sources you trust.", "--allow-pickle", panel=CHANGES,
    ),
    option(
        "trust_remote_code", bool, False,
        "Run pipeline code that comes with the model: only if you have read it.", "--trust-remote-code", panel=CHANGES,
    ),
    option(
        "name", str | None, None,
        "Name of the pipeline. Default: the provider's, with the type unless it is the first.", panel=BUILD,
        metavar="NAME",
    ),
    option(
        "force", bool, False,
        "Look up branches and tags again, and build even if it is in the cache, or if more memory than there is would "
        "be needed.", "--force", panel=BUILD,
    ),
    option("offline", bool, False, "Use only what is on this machine.", "--offline", panel=BUILD),
    *reporting(BUILD, "Print the result as a JSON object."),
]  # fmt: skip
CLASS = option(
    "pipeline", str | None, None,
    "The diffusers pipeline class, where the model names none or another.", "--class", panel=MODEL, metavar="CLASS",
)  # fmt: skip


CONTROLNET = option(
    "controlnet", str | None, None,
    "The ControlNet of the controlnet types: repository or folder. Short for --component controlnet=SOURCE.",
    panel=MODEL, metavar="SOURCE[@REVISION]",
)  # fmt: skip


def parameters(provider: Provider) -> list[inspect.Parameter]:
    """The options of `build PROVIDER`."""
    first = provider.types[0]
    default = first.repositories[0] if first.repositories else "none, must be given"
    types: Any = Literal[tuple(row.name for row in provider.types)]
    model = f"Repository (owner/name), local diffusers folder, or single-file checkpoint. Default: {default}."
    return [
        option("type", types, first.name, "What the pipeline makes, from what.", panel=MODEL),
        *([CLASS] if any(not row.pipeline for row in provider.types) else []),
        option("model", str | None, None, model, panel=MODEL, metavar="SOURCE"),
        *SOURCES,
        *([CONTROLNET] if any("controlnet" in row.components or not row.pipeline for row in provider.types) else []),
        option("dtype", Dtype, first.dtype, "Number format of the weights.", panel=MODEL),
        *COMMON,
    ]


def _build(provider: Provider, values: Mapping[str, Any]) -> None:
    output.set_up(quiet=values["quiet"], verbose=values["verbose"], log_file=values["log_file"])
    from ..building.build import Options, build
    from ..building.request import Request
    from ..cache.entry import SHORT
    from ..cache.store import Store
    from ..memory.choose import choose
    from ..memory.knobs import describe

    asked, row = spec_of(provider, values)
    request = Request(asked, row, Store(), values["offline"], fresh=values["force"])
    choice = choose(asked, row, request.store, values["offline"], lambda: request.pinned)
    for notice in choice.notices:
        output.warn(notice)
    if choice.reason:
        output.say(f"memory: {describe(choice.spec.placement)}: {choice.reason}")
    default = provider.name if row is provider.types[0] else f"{provider.name}-{row.name}"
    options = Options(
        values["name"] or default, values["force"], values["offline"], values["quiet"], choice.reason, choice.need
    )
    with output.reading("reading") as report, output.warnings_shown():
        built = build(request, choice.spec, options, output.say, report)
    entry, short = built.entry, built.entry.key[:SHORT]
    if built.cached:
        output.say(f"{built.name} is in the cache already ({short}): nothing to do")
    else:
        output.say(f"built {entry.summary.pipeline} from {entry.summary.model} as {built.name} ({short})")
    if built.replaced:
        output.say(f"the name {built.name} stood for {built.replaced[:SHORT]} until now")
    if values["json"]:
        shown = {"name": built.name, "key": entry.key, "cached": built.cached, "replaced": built.replaced}
        output.result_json(shown | entry.summary.to_json())
    else:
        output.result(f"{built.name} {short}")
    output.say(f"use it: {_use(built)}")


QUOTED = '"..."'


def _use(built: Built) -> str:
    """A command that generates, with the flags that this pipeline needs."""
    flags = built.entry.manifest().flags
    values = dict.fromkeys(MEDIA_KINDS, "FILE")
    needed = [f"{flag.option} {values.get(flag.kind, QUOTED)}" for flag in flags if flag.required]
    return " ".join(["diffpipe generate", built.name, *needed])


def spec_of(provider: Provider, values: Mapping[str, Any]) -> tuple[BuildSpec, PipelineType]:
    """The request and the row of a command's options. Raises UsageError for values that mean nothing."""
    row = provider.type(values["type"])
    assert row is not None  # Typer accepts no other
    model = values["model"] or next(iter(row.repositories), None)
    if not model:
        raise UsageError(
            "--model is missing", f"diffpipe build {provider.name} --model SOURCE: a repository, folder or file"
        )
    machine.check_name(values["device"])
    settings = (
        parse_json(values["scheduler_config"], "--scheduler-config", '{"shift": 3.0}')
        if values["scheduler_config"]
        else {}
    )
    if not isinstance(settings, dict):
        raise UsageError("--scheduler-config must be a JSON object", """for example '{"shift": 3.0}'""")
    spec = BuildSpec(
        provider=provider.name,
        type=row.name,
        model=model,
        pipeline=values.get("pipeline") or "",
        revision=values["revision"],
        variant=values["variant"],
        config=values["config"],
        components=_components_of(values),
        loras=tuple(values["lora"] or []),
        lora_partial=values["lora_partial"],
        scheduler=values["scheduler"],
        scheduler_config=settings,
        dtype=values["dtype"],
        device=values["device"],
        placement=_placement(values),
        speed=Speed(values["compile"], values["attention_backend"] or "", values["step_cache"] or ""),
        no_safety_checker=values["no_safety_checker"],
        allow_pickle=values["allow_pickle"],
        trust_remote_code=values["trust_remote_code"],
    )
    return spec, row


def _components_of(values: Mapping[str, Any]) -> dict[str, str]:
    named = [component_of(text) for text in values["component"] or []]
    if values.get("controlnet"):
        named.append(("controlnet", values["controlnet"]))
    seen: set[str] = set()
    for name, _ in named:
        if name in seen:
            twice = name == "controlnet" and values.get("controlnet")
            given = "--controlnet and --component controlnet= are both given" if twice else "--component is given twice"
            raise UsageError(f"{name} comes from two places: {given}", "leave one of them out")
        seen.add(name)
    return dict(sorted(named))


SWITCHES = ("memory", "attention_slicing", "vae_slicing", "vae_tiling", "layerwise_casting", "cpu_offload")


def _placement(values: Mapping[str, Any]) -> Placement:
    """How the pipeline is kept in memory. Raises UsageError for options that mean nothing together."""
    names = tuple(sorted({name.strip() for name in (values["quantize_components"] or "").split(",")} - {""}))
    if names and values["quantize"] == "none":
        raise UsageError("--quantize-components does nothing without --quantize", "add --quantize fp8, int8 or int4")
    quantized = values["quantize"] != "none"
    return Placement(
        **{name: values[name] for name in SWITCHES},
        quantize=values["quantize"],
        quantize_backend=values["quantize_backend"] if quantized or values["memory"] == "auto" else "quanto",
        quantize_components=names,
        device_memory=memory_size(values["device_memory"]) if values["device_memory"] else None,
    )


def memory_size(text: str) -> int:
    """Bytes of a size as people write it: 12GiB and 12G are GiB, 12GB is 12,000,000,000. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(iB|B)?", text.strip(), re.IGNORECASE)
    if found and not found[2] and not found[3]:
        raise UsageError(f"--device-memory {text}: {text} of what?", f"add the unit, for example {text.strip()}GiB")
    if not found or not float(found[1]):
        raise UsageError(f"--device-memory {text!r} is no size", "for example 12GiB")
    power = " KMGT".index(found[2].upper() or " ")
    return int(float(found[1]) * float(1000 if (found[3] or "").upper() == "B" else 1024) ** power)


def component_of(text: str) -> tuple[str, str]:
    name, mark, source = text.partition("=")
    if not mark or not source or not name.isidentifier():
        raise UsageError(f"--component {text!r} is not NAME=SOURCE", "for example text_encoder_2=google/t5-v1_1-xxl")
    return name, source
