"""`diffpipe` and `python -m diffpipe`."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress

LARGEST_MODULE = 16 << 20  # bytes that no compiled module has


def main() -> None:
    """The command line; Ctrl-C while its modules are still being imported ends it as quietly as later."""
    keep_bytecode_whole()
    try:
        from .cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as stop:
        if stop.code:  # where a limit ended the run, what libraries do at exit fails at it as well: told once
            sys.unraisablehook = lambda _: None
        if isinstance(stop.code, int) and may_leave():
            leave(stop.code)
        raise


def keep_bytecode_whole() -> None:
    """Write no compiled modules where files may not be large: Python gives them their names though they were cut off,
    and every later run would fail to import them."""
    with suppress(ImportError):  # Windows has no such limits
        import resource

        if 0 <= resource.getrlimit(resource.RLIMIT_FSIZE)[0] < LARGEST_MODULE:
            sys.dont_write_bytecode = True


def may_leave() -> bool:
    """Whether this process may end without being taken apart, which takes 0.7 s where torch was imported.

    Not where the interpreter is someone else's (main was called from another program, or by a profiler, debugger or
    coverage), nor while other threads or child processes of multiprocessing are to be waited for.
    """
    from threading import current_thread
    from threading import enumerate as threads

    children = sys.modules.get("multiprocessing")
    watched = sys.gettrace() or sys.getprofile() or _monitored()
    return (
        "torch" in sys.modules
        and getattr(sys.modules["__main__"], "main", None) is main
        and not (watched or sys.flags.inspect or sys.flags.dev_mode or os.environ.get("PYTHONINSPECT"))
        and all(thread.daemon or thread is current_thread() for thread in threads())
        and not (children and children.active_children())
        and hasattr(atexit, "_run_exitfuncs")
    )


def _monitored() -> bool:
    """Whether a tool uses sys.monitoring (Python 3.12 and later), which has places for six."""
    monitoring = getattr(sys, "monitoring", None)
    return monitoring is not None and any(monitoring.get_tool(place) for place in range(6))


def leave(code: int) -> None:
    """End the process as the interpreter does (Py_FinalizeEx), but for taking its modules and objects apart.

    Functions registered to run at exit are run, and what was printed is flushed; where that fails, as to a pipe that
    nobody reads any more, this returns, for the interpreter to say so in its own way.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(code)


if __name__ == "__main__":
    main()
