"""What a pipeline needs imported, and no more: imports are most of a cold start.

Four things make `import diffusers` shorter, and none changes what runs:

- the garbage collector rests: modules make a million objects that all stay;
- packages of diffusers whose __init__ only gathers names from their modules look each name up when it is asked for;
- transformers, which looks through all of its files for what they export, looks at the ends of them;
- torch's compiler, of which the libraries use some decorators, is imported when anything of it is to run.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType
from typing import Any

GATHERING = "diffusers.models."  # packages under it that are gathered from their modules
SCANNING = "transformers.utils.import_utils"
TRANSFORMERS = ("5.23.",)  # versions whose fetch__all__ heeds nothing before the last line that starts with __all__
TORCH = ("2.13.",)  # versions of torch whose torch._dynamo may wait: it is private, and others are imported as they are
DYNAMO = "torch._dynamo"  # torch's compiler front end: 1,100 modules, of which an uncompiled pipeline runs none
MARKS = ("allow_in_graph", "assume_constant_result")  # its decorators that note something of a function
HIGHER_ORDER = f"{DYNAMO}._trace_wrapped_higher_order_op"


@contextmanager
def lean(*, compiled: bool = False, absent: Iterable[str] = ()) -> Iterator[None]:
    """Import as little as may be while this is entered.

    `compiled`: torch's compiler is going to be used. `absent`: packages that are taken for not installed meanwhile,
    as a name that sys.modules has as None is.
    """
    hidden = [name for name in absent if name not in sys.modules]
    finder, collecting = _Lean(), gc.isenabled()
    gc.disable()
    sys.meta_path.insert(0, finder)
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        if not compiled:
            defer()
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
        if fullname != SCANNING and not fullname.startswith(GATHERING):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        loader: Any = spec.loader if spec else None
        if isinstance(loader, importlib.machinery.SourceFileLoader):
            if fullname == SCANNING:
                loader.exec_module = functools.partial(_scan, loader)  # type: ignore[method-assign]
            elif spec and spec.submodule_search_locations and (where := gathered(loader.get_source(fullname) or "")):
                loader.exec_module = functools.partial(_gather, where)  # type: ignore[method-assign]
        return spec


def _scan(loader: Any, module: ModuleType) -> None:
    """Load transformers' module that looks through its 3,300 files for what each exports."""
    type(loader).exec_module(loader, module)
    if importlib.metadata.version("transformers").startswith(TRANSFORMERS):
        whole = module.fetch__all__
        module.fetch__all__ = lambda text: whole(exports(text))  # type: ignore[attr-defined]


def exports(text: str) -> str:
    """A file from the last line that starts with __all__, all of it if there is none: all that fetch__all__ heeds."""
    return text[text.rfind("\n__all__") + 1 :]


def _gather(where: Mapping[str, str], module: ModuleType) -> None:
    """Load a package whose __init__ gathers names, each to be looked up at first use (PEP 562)."""

    def look_up(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f".{where[name]}", module.__name__), name)
        setattr(module, name, found)
        return found

    module.__getattr__ = look_up  # type: ignore[method-assign]
    module.__dir__ = lambda: sorted({*vars(module), *where})  # type: ignore[method-assign]


def gathered(source: str) -> dict[str, str]:
    """Name -> module of an __init__ that only gathers names; {} for one that does anything else.

    Such a file holds imports from its own modules, bare or under `if is_torch_available():`, and the import of that.
    """
    where: dict[str, str] = {}
    for node in _statements(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or any(alias.name == "*" for alias in node.names):
            return {}
        names = {alias.asname or alias.name: alias.name for alias in node.names}
        if node.level == 1 and node.module and all(asked == name for asked, name in names.items()):
            where |= dict.fromkeys(names, node.module)
        elif set(names) != {"is_torch_available"}:
            return {}
    return {} if set(where) & set(where.values()) else where  # a module would hide what it holds under its own name


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, with those that run if there is torch in the place of the condition."""
    for node in tree.body:
        condition = isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test)
        if condition == "is_torch_available()":
            yield from node.body  # type: ignore[attr-defined]
        else:
            yield node


def defer() -> None:
    """Put a stand-in in the place of torch's compiler, where its version is one that this was tried with."""
    import torch

    if DYNAMO not in sys.modules and str(torch.__version__).startswith(TORCH):
        _stand_in(HIGHER_ORDER, "TransformGetItemToIndex")
        _Compiler().stand_in()


def _stand_in(name: str, *functions: str) -> None:
    """A module in whose place some of its functions stand, until one is called or anything else is asked for."""
    module = ModuleType(name)

    def real() -> ModuleType:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return importlib.import_module(name)

    def look_up(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return getattr(real(), attribute)

    def late(function: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: getattr(real(), function)(*args, **kwargs)

    vars(module).update({function: late(function) for function in functions}, __getattr__=look_up)
    sys.modules[name] = module


class _Compiler(importlib.abc.MetaPathFinder):
    """torch._dynamo before any of it runs: it has what libraries use of it as they are imported and load models, and
    becomes the package itself when anything else of it is asked for.
    """

    def __init__(self) -> None:
        self.module = module_from_spec(_found(DYNAMO))
        marks = {name: functools.partial(self.mark, name) for name in MARKS}
        self.own = {**marks, "disable": self.disable, "eval_frame": self.frames()}
        self.marked: list[tuple[str, Any]] = []
        self.lock, self.waiting = threading.RLock(), True

    def stand_in(self) -> None:
        vars(self.module).update(self.own, __getattr__=self.look_up)
        sys.modules[DYNAMO] = self.module
        sys.meta_path.insert(0, self)

    def mark(self, how: str, function: Any) -> Any:
        """What is marked before there is a compiler is marked when there is one."""
        self.marked.append((how, function))
        return function

    def frames(self) -> ModuleType:
        """torch._dynamo.eval_frame, of which diffusers asks whether modules are compiled: none is yet."""
        module, none = ModuleType(f"{DYNAMO}.eval_frame"), type("OptimizedModule", (), {})

        def look_up(name: str) -> Any:
            if name == none.__name__ and self.waiting:
                return none
            return getattr(self.look_up("eval_frame"), name)

        vars(module)["__getattr__"] = look_up
        return module

    def disable(self, function: Any = None, *how: Any, **options: Any) -> Any:
        """Keep the compiler out of a function, which matters once there is one."""
        if function is None:
            return lambda function: self.disable(function, *how, **options)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            called = function if self.waiting else self.module.disable(function, *how, **options)
            return called(*args, **kwargs)

        return wrapper

    def look_up(self, name: str) -> Any:
        if not name.startswith("__"):
            self.become()
        if name in vars(self.module):
            return vars(self.module)[name]
        raise AttributeError(f"module {DYNAMO!r} has no attribute {name!r}")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Nothing: a module of the package is found as usual once the package is there, which may have imported it."""
        if not fullname.startswith(f"{DYNAMO}."):
            return None
        self.become()
        if module := sys.modules.get(fullname):
            vars(module)["__spec__"] = spec_from_loader(fullname, _Present(module))  # importlib goes by this alone
            return module.__spec__
        return None

    def become(self) -> None:
        """Import the package in this module's place."""
        with self.lock:
            if not self.waiting:
                return
            self.waiting = False
            sys.meta_path.remove(self)
            sys.modules.pop(HIGHER_ORDER, None)
            for name in self.own:
                del vars(self.module)[name]
            try:
                _found(DYNAMO).loader.exec_module(self.module)
            except BaseException:
                del sys.modules[DYNAMO]
                raise
            if vars(self.module).get("__getattr__") == self.look_up:
                del vars(self.module)["__getattr__"]
            for how, function in self.marked:
                getattr(self.module, how)(function)


def _found(name: str) -> Any:
    spec = importlib.machinery.PathFinder.find_spec(name, importlib.import_module(name.rpartition(".")[0]).__path__)
    assert spec
    return spec


class _Present(importlib.abc.Loader):
    """Gives a module that was imported on the way to itself."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec
