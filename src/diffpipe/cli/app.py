"""The root command, the error boundary and the exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from .. import __version__
from ..errors import DiffpipeError, Exit
from . import output, tree

COMMANDS = {
    "build": "Resolve, check and name a pipeline, and keep it in the cache.",
    "generate": "Make pictures with a built pipeline.",
    "pipelines": "List, show, rename, remove, prune or verify built pipelines.",
    "providers": "List or show the families that can be built.",
    "doctor": "Show versions, devices, memory, cache, token and hub.",
}
COMPLETE = "_DIFFPIPE_COMPLETE"  # the variable by which Typer is asked for completions
HELP = "Build diffusers pipelines once, generate with them many times."
EPILOG = "diffpipe --version shows the version. Any command takes --traceback, which shows where an error came from."


def _make(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__).make() if name in COMMANDS else None


def root() -> Any:
    """The whole command tree; sub-commands are imported when they are used."""
    return tree.group("diffpipe", HELP, lambda: COMMANDS, _make, epilog=EPILOG)


def main() -> None:
    """Run the command line; every error ends as two lines and an exit code, or a traceback under --traceback."""
    traceback = "--traceback" in sys.argv or bool(os.environ.get("DIFFPIPE_TRACEBACK"))
    arguments = [word for word in sys.argv[1:] if word != "--traceback"]
    if arguments == ["--version"]:
        output.result(f"diffpipe {__version__}")
        sys.exit(Exit.OK)
    if COMPLETE in os.environ:
        from typer.completion import get_completion_inspect_parameters

        get_completion_inspect_parameters()  # registers the shells; typer.Typer() does it, groups of one's own do not
    try:
        root()(args=arguments, prog_name="diffpipe")
    except DiffpipeError as error:
        if traceback:
            raise
        output.fail(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if traceback:
            raise
        output.fail(
            DiffpipeError(f"{type(error).__name__}: {error}", "this is a bug: run again with --traceback and report it")
        )
        sys.exit(Exit.FAILED)
