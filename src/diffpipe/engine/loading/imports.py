"""What a pipeline needs imported, and no more: imports are most of a cold start.

Four things make `import diffusers` shorter, and none changes what runs:

- the garbage collector rests: modules make a million objects that all stay;
- packages of diffusers whose __init__ only gathers names from their modules look each name up when it is asked for;
- transformers, which looks through all of its files for what they export, looks at the ends of them;
- torch's compiler, of which the libraries use some decorators, is imported when anything of it is to run.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType

from ..seams import diffusers_import_seam, log_missing, torch_seam, transformers_seam


@contextmanager
def lean(*, compiled: bool = False, absent: Iterable[str] = ()) -> Iterator[None]:
    """Import as little as may be while this is entered.

    `compiled`: torch's compiler is going to be used. `absent`: packages that are taken for not installed meanwhile,
    as a name that sys.modules has as None is.
    """
    log_missing()
    hidden = [name for name in absent if name not in sys.modules]
    finder, collecting = _Lean(), gc.isenabled()
    gc.disable()
    sys.meta_path.insert(0, finder)
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        if not compiled:
            torch_seam.defer_compiler()
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        sys.meta_path.remove(finder)
        gc.freeze()  # what was imported stays: no collection need look at it again
        if collecting:
            gc.enable()


class _Lean(importlib.abc.MetaPathFinder):
    """Finds modules as usual, and has some of them loaded in a shorter way."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        scanning = fullname == transformers_seam.SCANNING
        if not scanning and not fullname.startswith(diffusers_import_seam.PACKAGES):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        loader = spec.loader if spec else None
        if not isinstance(loader, importlib.machinery.SourceFileLoader):
            return spec
        if scanning:
            loader.exec_module = partial(transformers_seam.scan_ends, loader)  # type: ignore[method-assign]
        elif spec and spec.submodule_search_locations:
            source = loader.get_source(fullname) or ""
            if where := diffusers_import_seam.gathered(source):
                loader.exec_module = partial(diffusers_import_seam.gather, where)  # type: ignore[method-assign]
        return spec
