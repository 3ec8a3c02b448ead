"""A program: call a function of a file in a process that has the device of paper, and print what it returns as JSON.

Installing the device changes torch for as long as a process lives, so no process of pytest has it.
"""

from __future__ import annotations

import importlib.util
import json
import sys


def main() -> None:
    path, function, arguments = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("called", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["called"] = module
    spec.loader.exec_module(module)
    print(json.dumps(getattr(module, function)(*json.loads(arguments))))


if __name__ == "__main__":
    main()
