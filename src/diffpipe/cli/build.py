"""diffpipe build PROVIDER: one sub-command a provider, plug-ins included."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from ..errors import UsageError
from ..plugins import providers
from ..specs import BuildSpec, PipelineType, Provider
from . import output, tree
from .flags import parse_json, with_parameters

DTYPES = Literal["bfloat16", "float16", "float32"]
DEVICE = r"(auto|cpu|mps|(cuda|xpu)(:\d+)?)"


def make() -> Any:
    rows = {name: _title(provider) for name, provider in providers().items()}
    return tree.group("build", "Resolve, check and name a pipeline, and keep it in the cache.", lambda: rows, _make)


def _title(provider: Provider) -> str:
    types = ", ".join(row.name for row in provider.types)
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


def _option(name: str, kind: Any, default: Any, text: str, *declared: str, panel: str, **more: Any) -> inspect.Parameter:
    option = typer.Option(*declared or ("--" + name.replace("_", "-"),), help=text, rich_help_panel=panel, **more)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def parameters(provider: Provider) -> list[inspect.Parameter]:
    """The options of `build PROVIDER`."""
    model, change, run = "Model", "Changes", "Build"
    rows = provider.types
    text = Optional[str]  # noqa: UP045
    texts = Optional[list[str]]  # noqa: UP045
    listed = [
        _option("type", Literal[tuple(row.name for row in rows)], rows[0].name, "What the pipeline makes, from what.", panel=model),
        _option("model", text, None, "Repository (owner/name), local diffusers folder, or single-file checkpoint. "
                f"Default: {rows[0].repositories[0] if rows[0].repositories else 'none, must be given'}.",
                panel=model, metavar="SOURCE"),
        _option("revision", text, None, "Commit, branch or tag of the repository.", panel=model),
        _option("variant", text, None, "Load the weights of this variant, for example fp16.", panel=model),
        _option("config", text, None, "For a single-file checkpoint: the repository or folder its settings and missing "
                "parts come from. Default: the provider's first model.", panel=model, metavar="SOURCE"),
        _option("dtype", DTYPES, rows[0].dtype, "Number format of the weights.", panel=model),
        _option("component", texts, None, "Take a component from elsewhere. May be repeated.", panel=change,
                metavar="NAME=SOURCE[@REVISION]"),
        _option("lora", texts, None, "Fuse a LoRA: repository, repository/file or local file. May be repeated.",
                panel=change, metavar="SOURCE[@SCALE]"),
        _option("scheduler", text, None, "Another scheduler class of diffusers, set up as the shipped one.",
                panel=change, metavar="CLASS"),
        _option("scheduler_config", text, None, "Scheduler settings, merged onto the shipped ones.", panel=change, metavar="JSON"),
        _option("device", str, "auto", "Where it runs: auto, cpu, cuda, cuda:1, mps, xpu.", panel=change),
        _option("allow_pickle", bool, False, "Load pickled weights, which can run code: only from sources you trust.",
                "--allow-pickle", panel=change),
        _option("trust_remote_code", bool, False, "Run pipeline code that comes with the model: only if you have read it.",
                "--trust-remote-code", panel=change),
        _option("name", text, None, "Name of the pipeline. Default: the provider's, with the type unless it is the first.", panel=run),
        _option("force", bool, False, "Look up branches and tags again, and build even if it is in the cache.", "--force", panel=run),
        _option("offline", bool, False, "Use only what is on this machine.", "--offline", panel=run),
        _option("json", bool, False, "Print the result as a JSON object.", "--json", panel=run),
        _option("quiet", bool, False, "Print nothing but the result and errors.", "--quiet", "-q", panel=run),
        _option("verbose", bool, False, "Show the detailed log.", "--verbose", "-v", panel=run),
        _option("log_file", Optional[Path], None, "Write the detailed log to a file.", panel=run, metavar="FILE"),  # noqa: UP045
    ]  # fmt: skip
    if any(not row.pipeline for row in rows):
        listed.insert(
            1, _option("pipeline", text, None, "The diffusers pipeline class, where the model names none or another.",
                       "--class", panel=model, metavar="CLASS")
        )  # fmt: skip
    return listed


def _build(provider: Provider, values: Mapping[str, Any]) -> None:
    output.set_up(quiet=values["quiet"], verbose=values["verbose"], log_file=values["log_file"])
    from ..build import Options, build
    from ..store import SHORT, Store

    spec, row = spec_of(provider, values)
    default = provider.name if row is provider.types[0] else f"{provider.name}-{row.name}"
    options = Options(values["name"] or default, values["force"], values["offline"], values["quiet"])
    with output.reading("reading") as report:
        built = build(spec, row, Store(), options, output.say, report)
    entry, short = built.entry, built.entry.key[:SHORT]
    if built.cached:
        output.say(f"{built.name} is in the cache already ({short}): nothing to do")
    else:
        output.say(f"built {entry.summary['pipeline']} from {entry.summary['model']} as {built.name} ({short})")
    if built.replaced:
        output.say(f"the name {built.name} stood for {built.replaced[:SHORT]} until now")
    if values["json"]:
        shown = {"name": built.name, "key": entry.key, "cached": built.cached, "replaced": built.replaced}
        output.result_json(shown | {k: v for k, v in entry.summary.items() if k != "key"})
    else:
        output.result(f"{built.name} {short}")
    output.say(f"use it: diffpipe generate {built.name}" + (' --prompt "..."' if not built.cached else " --help"))


def spec_of(provider: Provider, values: Mapping[str, Any]) -> tuple[BuildSpec, PipelineType]:
    """The request and the row of a command's options. Raises UsageError for values that mean nothing."""
    import re

    row = provider.type(values["type"])
    assert row is not None  # Typer accepts no other
    model = values["model"] or next(iter(row.repositories), None)
    if not model:
        raise UsageError("--model is missing", f"diffpipe build {provider.name} --model SOURCE: a repository, folder or file")
    if not re.fullmatch(DEVICE, values["device"]):
        raise UsageError(f"--device {values['device']!r} is no device", "use auto, cpu, cuda, cuda:N, mps or xpu")
    settings = parse_json(values["scheduler_config"], "--scheduler-config") if values["scheduler_config"] else {}
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
        components=dict(sorted(_component(text) for text in values["component"] or [])),
        loras=tuple(values["lora"] or []),
        scheduler=values["scheduler"],
        scheduler_config=settings,
        dtype=values["dtype"],
        device=values["device"],
        allow_pickle=values["allow_pickle"],
        trust_remote_code=values["trust_remote_code"],
    )
    return spec, row


def _component(text: str) -> tuple[str, str]:
    name, mark, source = text.partition("=")
    if not mark or not source or not name.isidentifier():
        raise UsageError(f"--component {text!r} is not NAME=SOURCE", "for example text_encoder_2=google/t5-v1_1-xxl")
    return name, source
