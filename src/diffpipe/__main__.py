"""`diffpipe` and `python -m diffpipe`."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line; Ctrl-C while its modules are still being imported ends it as quietly as later."""
    try:
        from diffpipe.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
