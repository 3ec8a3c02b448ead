"""The root command, the error boundary and the exit codes."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
from difflib import get_close_matches
from typing import Any

from .. import __version__
from ..core.errors import DiffpipeError, Exit, NotFoundError, UsageError
from . import output, standard_input, tree, typer_seam

COMMANDS = {
    "build": "Resolve, check and name a pipeline, and keep it in the cache.",
    "plan": "Show what a pipeline needs and how it would fit, without loading it.",
    "generate": "Make pictures, video or sound with a built pipeline.",
    "pipelines": "List, show, rename, remove, prune, verify, export or import built pipelines.",
    "providers": "List or show the families that can be built.",
    "worker": "List or stop the workers that keep pipelines loaded.",
    "inspect": "Show what a file was made with.",
    "reproduce": "Make a file again with what it was made with, and compare.",
    "doctor": "Show versions, devices, memory, cache, token and hub.",
}
MODULES = {"inspect": "inspect_file", "worker": "workers"}  # those that are not named as their command
COMPLETE = "_DIFFPIPE_COMPLETE"  # the variable by which Typer is asked for completions
HELP = "Build diffusers pipelines once, generate with them many times."
SIGNALLED = 128  # what a shell adds to a signal's number to make an exit code of it
EPILOG = "diffpipe --version shows the version. Any command takes --traceback, which shows where an error came from."


_signals: list[int] = []  # that ended this run


def _make(name: str) -> Any:
    return importlib.import_module(f".{MODULES.get(name, name)}", __package__).make() if name in COMMANDS else None


def root() -> Any:
    """The whole command tree; sub-commands are imported when they are used."""
    return tree.group("diffpipe", HELP, lambda: COMMANDS, _make, epilog=EPILOG)


def main() -> None:
    """Run the command line; every error ends as two lines and an exit code, or a traceback under --traceback."""
    _fill_closed_streams()
    _stop_in_order()
    standard_input.keep()
    output.forgive()
    traceback = "--traceback" in sys.argv or bool(os.environ.get("DIFFPIPE_TRACEBACK"))
    sys.excepthook = output.show_traceback
    arguments = [word for word in sys.argv[1:] if word != "--traceback"]
    if COMPLETE in os.environ:
        typer_seam.register_shells()  # typer.Typer() does it, groups of one's own do not
    try:
        if arguments == ["--version"]:
            output.result(f"diffpipe {__version__}")
            sys.exit(Exit.OK)
        _check_working_folder()
        _check_endpoint()
        code = root()(args=arguments, prog_name="diffpipe", standalone_mode=False)
        if code == Exit.INTERRUPTED:
            output.interrupted()
            code = SIGNALLED + _signals[0] if _signals else code
        sys.exit(code if isinstance(code, int) else Exit.OK)
    except DiffpipeError as error:
        if traceback:
            raise
        output.fail(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if traceback:
            raise
        if hasattr(error, "format_message"):
            _refuse(error)
        if known := _of_the_system(error):
            output.fail(known)
            sys.exit(known.exit_code)
        output.fail(
            DiffpipeError(f"{type(error).__name__}: {error}", "this is a bug: run again with --traceback and report it")
        )
        sys.exit(Exit.FAILED)


def _stop_in_order() -> None:
    """End by SIGTERM, or as the terminal goes, as by Ctrl-C: what is half done is taken away. nohup's wish stays."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
        if number and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> None:
    _signals.append(number)
    raise KeyboardInterrupt


def _fill_closed_streams() -> None:
    """A process may be started with its streams closed: the next file would take their numbers, and what C libraries
    print would go into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _check_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        if COMPLETE in os.environ or {"--help", "-h"} & set(sys.argv):
            return
        # Paths mean nothing here, and torch's libraries end a process that loads them.
        raise NotFoundError("the working folder is not there any more", "cd to one that is") from None


def _check_endpoint() -> None:
    """Raises UsageError for an address of the hub that is none: its client cannot even be imported with some."""
    address = os.environ.get("HF_ENDPOINT")
    if not address or COMPLETE in os.environ:
        return
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or not address.isprintable():
        raise UsageError("HF_ENDPOINT is no address of a hub", "unset it, or give it as https://HOST")


def _of_the_system(error: Exception) -> DiffpipeError | None:
    from ..storage import disk  # which a run without errors need not wait for

    return disk.refused(error) if isinstance(error, OSError) else disk.of_the_system(error)


def _refuse(error: Any) -> None:
    """End with what Typer found wrong with the command line. (Its click is private: known here by what it carries.)"""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(Exit.USAGE)
    command = error.ctx.command_path if getattr(error, "ctx", None) else "diffpipe"
    hint = f"{command} --help shows what it takes"
    if hasattr(error, "possibilities"):
        near = get_close_matches(error.option_name, error.possibilities or (), n=1, cutoff=0)
        hint = f"did you mean {near[0]}?" if near else hint
        output.fail(UsageError(f"{command} has no option {error.option_name}", hint))
    else:
        # Typer checks values with pydantic, which says this before every message of Typer's own.
        text = error.format_message().replace("Value error, ", "").rstrip(".")
        text = re.sub(r"Input should be a valid integer.*", "it must be a whole number", text)
        text = re.sub(r"Input should be a valid number.*", "it must be a number", text)
        text = text.replace("Input should be", "it must be")
        # Typer 0.26 says it in words of its own.
        text = re.sub(r"(?<=: )'.*' is not a valid int(eger)?\b.*", "it must be a whole number", text)
        text = re.sub(r"(?<=: )'.*' is not a valid float\b.*", "it must be a number", text)
        output.fail(UsageError(" ".join(text.split()), hint))
    sys.exit(Exit.USAGE)
