"""A cold start: what is imported, that it changes no result, and how the process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench
import cases_image
import cases_video
import pytest
from conftest import Cli, Done, Warm
from hypothesis import given
from hypothesis import strategies as st
from manifests import config_json, manifest, source_json

from diffpipe.core.canonical import digest
from diffpipe.core.configuration import Quantization
from diffpipe.core.manifest import Located, Manifest, QuantizedComponent, StoredWeights
from diffpipe.core.source import BASE
from diffpipe.engine.loading import start
from diffpipe.engine.seams import diffusers_import_seam, transformers_seam

pytestmark = pytest.mark.pinned  # most of what saves time at the start is for versions it was tried with
PROMPT = ("--prompt", "a panda on a pink background", "--seed", "11", "--num-inference-steps", "2")
COMPILER = "torch._dynamo.convert_frame"
UNNEEDED = {COMPILER, "torchao", "diffusers.models.transformers.transformer_wan"}


def python(program: str, *arguments: object, env: dict[str, str] | None = None, **options: Any) -> Done:
    """Run a program in a fresh interpreter."""
    words = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options, "env": {**os.environ, **(env or {})}}
    return subprocess.run(words, text=True, check=False, timeout=120, **options)


def answer(program: str, *arguments: object) -> Any:
    """The JSON that a program prints last."""
    done = python(program, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def demo(warm: Warm) -> Warm:
    warm("build", "demo", check=True)
    return warm


IMPORTED = """
    import json, sys
    from diffpipe.engine.seams import torch_seam
    torch_seam.DEFERRED = torch_seam.DEFERRED if sys.argv.pop(1) == "this torch" else ()
    from diffpipe.cli.app import main
    try:
        main()
    except SystemExit as stop:
        print(json.dumps([stop.code, sorted(sys.modules)]))
"""


def cold(cli: Cli, torch: str, *words: str, env: Mapping[str, str] | None = None) -> set[str]:
    """The modules that a command imports, in a process that is as good as the command's own."""
    done = python(IMPORTED, torch, *words, env=cli.environment(env), cwd=cli.cwd)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


def test_a_cold_start_imports_little_and_makes_the_same_picture(cli: Cli, demo: Warm) -> None:
    words = ("generate", "demo", *PROMPT, "--no-metadata", "-o")
    demo(*words, "ordinary.png", check=True)
    imported = cold(cli, "this torch", *words, "cold.png")
    assert (cli.cwd / "cold.png").read_bytes() == (cli.cwd / "ordinary.png").read_bytes()
    assert {"torch", "diffusers.models.transformers.transformer_flux"} <= imported
    assert imported & UNNEEDED == set()
    imported = cold(cli, "another torch", *words, "other.png")
    assert (cli.cwd / "other.png").read_bytes() == (cli.cwd / "ordinary.png").read_bytes()
    assert COMPILER in imported


OTHER = os.environ.get("TEST_FAMILIES", "wuerstchen-text2image wan-text2video").split()  # others take minutes
OTHERS = [case for case in (*cases_image.CASES, *cases_video.CASES) if case.name in OTHER]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_other_families_make_the_same(cli: Cli, warm: Warm, checkpoints: Path, inputs: Path, case: Any) -> None:
    places = {"checkpoints": checkpoints, "inputs": inputs}
    build, flags = ([word.format(**places) for word in words] for words in (case.build, case.flags))
    model = ("--type", case.type, "--model", checkpoints / case.checkpoint, "--name", case.name)
    warm("build", case.provider, *model, *build, "--dtype", "float32", check=True)
    made = {}
    for how, run in (("ordinary", warm), ("cold", cli.fresh)):
        words = ("--seed", 5, "--no-metadata", "--output", f"{case.name}-{how}/")
        printed = run("generate", case.name, *flags, *words, check=True).stdout.splitlines()
        made[how] = [(cli.cwd / line).read_bytes() for line in printed]
    assert len(made["cold"]) == case.files
    assert made["cold"] == made["ordinary"]


# --- Packages that gather names ---


def test_an_init_that_only_gathers_is_told_from_one_that_does_more() -> None:
    gathering = """
        from ...utils import is_torch_available
        from .one import A, B
        if is_torch_available():
            from .two import (C)
    """
    for more, expected in (
        ("", {"A": "one", "B": "one", "C": "two"}),
        ("from .three import *", {}),
        ("from ..elsewhere import D", {}),
        ("from .three import D as E", {}),
        ("from .D import D", {}),
        ("D = 1", {}),
        ("if is_flax_available():\n    from .three import D", {}),
        ("if is_torch_available():\n    from .three import D\nelse:\n    D = 1", {}),
    ):
        source = f"{textwrap.dedent(gathering)}\n{more}\n"
        assert diffusers_import_seam.gathered(source) == expected, more


def test_the_installed_diffusers_gathers_and_every_name_is_the_ordinary_one() -> None:
    found = answer(
        """
        import importlib, json, sys
        from diffpipe.engine.loading import imports
        with imports.lean():
            import diffusers.models.transformers as gathered
        loaded = [name for name in sys.modules if name.startswith("diffusers.models.transformers.")]
        names = [name for name in dir(gathered) if not name.startswith("_")]
        wrong = [name for name in names if getattr(gathered, name).__name__ != name]
        try:
            gathered.Nothing
        except AttributeError as error:
            print(json.dumps([len(loaded), len(names), wrong, str(error)]))
        """
    )
    loaded, names, wrong, error = found
    assert loaded == 0  # else diffusers writes its __init__ another way now, and cold starts are slower again
    assert names > 50
    assert (wrong, error) == ([], "module 'diffusers.models.transformers' has no attribute 'Nothing'")


# --- Names that transformers exports ---

LINES = st.lists(
    st.sampled_from(
        ["__all__ = ['A', 'B']", "__all__ = [", '    "C",', "]", "", "class D:", "    __all__ = []", "x = 1", "__all__"]
    )
)


@given(LINES, st.sampled_from(["\n", "\r\n", "\f\n", "\r", "\u2028"]))
def test_the_end_of_a_file_says_what_it_exports(lines: list[str], separator: str) -> None:
    from transformers.utils.import_utils import fetch__all__

    def answered(text: str) -> Any:
        try:
            return fetch__all__(text)
        except (IndexError, ValueError) as error:
            return repr(error)

    text = separator.join(lines)
    assert answered(transformers_seam.exports(text)) == answered(text)


def test_transformers_exports_the_same_whatever_its_version() -> None:
    program = """
        import json, sys
        from diffpipe.engine.loading import imports
        from diffpipe.engine.seams import transformers_seam
        transformers_seam.SCANNED = transformers_seam.SCANNED if sys.argv[1] else ()
        with imports.lean():
            import transformers
        names = transformers._class_to_module
        shorter = transformers.utils.import_utils.fetch__all__.__module__ == transformers_seam.__name__
        print(json.dumps([shorter, len(names), sorted(names.items())]))
        """
    shorter, ordinary = answer(program, "shorter"), answer(program, "")
    assert (shorter[0], ordinary[0]) == (True, False)  # else transformers is newer than this was tried with, and slower
    assert shorter[1:] == ordinary[1:]
    assert shorter[1] > 3000


# --- torch's compiler ---

COMPILED = """
    import json, os, sys
    from diffpipe.engine.loading import imports
    from diffpipe.engine.seams import torch_seam
    if sys.argv[2]:
        torch_seam.DEFERRED = ()
    with imports.lean():
        import torch
        import diffusers.utils.torch_utils
        from diffusers.models.attention import BasicTransformerBlock
        from transformers.generation.continuous_batching.cache import PagedAttentionCache
        from transformers.masking_utils import TransformGetItemToIndex
    waited = "torch._dynamo.convert_frame" not in sys.modules
    seen = []

    @torch.compiler.disable
    def apart(x):
        seen.append(torch.compiler.is_compiling())
        return x + 1

    plain = diffusers.utils.torch_utils.is_compiled_module(torch.nn.Linear(1, 1)), int(apart(torch.zeros(())))
    waiting = waited and "torch._dynamo.convert_frame" not in sys.modules
    for first in json.loads(sys.argv[1]):
        if hasattr(os, "fork") and (child := os.fork()):  # what was imported so far takes two seconds
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            continue
        exec(first)
        import torch._dynamo, torch._dynamo.config, torch._dynamo.eval_frame
        from torch._dynamo.trace_rules import _allowed_callable_ids
        model = torch.compile(torch.nn.Linear(2, 2), backend="eager")
        compiled = torch.compile(lambda x: apart(x) * 2, backend="eager")
        same = [
            torch._dynamo is sys.modules["torch._dynamo"],
            torch._dynamo.config is sys.modules["torch._dynamo.config"],
            torch._dynamo.eval_frame is sys.modules["torch._dynamo.eval_frame"],
            torch._dynamo.config is torch._dynamo.eval_frame.config,
            type(torch._dynamo.config.__spec__.loader).__name__ == "SourceFileLoader",
            "__getattr__" not in vars(torch._dynamo),
            id(BasicTransformerBlock) in _allowed_callable_ids(),
            diffusers.utils.torch_utils.is_compiled_module(model),
            model(torch.ones(1, 2)).shape == (1, 2),
            int(compiled(torch.ones(()))) == 4,
            seen == [False, False],
        ]
        with TransformGetItemToIndex():
            pass
        print(json.dumps([first, waited, waiting, plain, same]), flush=True)
        os._exit(0)
"""
FIRSTS = [
    "pass",
    "import torch._dynamo.config",
    "TransformGetItemToIndex()",
    "from torch._dynamo import eval_frame",
    "import torch._dynamo.eval_frame as frames; frames.innermost_fn",
]


def compiled(firsts: list[str], torch: str) -> dict[str, list[Any]]:
    """What a process finds that had imported all but the compiler, and then ran each of `firsts`."""
    found = {}
    for together in [firsts] if hasattr(os, "fork") else [[one] for one in firsts]:
        done = python(COMPILED, json.dumps(together), torch)
        assert done.returncode == 0, done.stderr
        found |= {first: told for first, *told in map(json.loads, done.stdout.splitlines())}
    return found


@pytest.fixture(scope="module")
def first_uses() -> dict[str, list[Any]]:
    return compiled(FIRSTS, "")


@pytest.mark.parametrize("first", FIRSTS)
def test_the_compiler_is_there_when_it_is_asked_for(first_uses: dict[str, list[Any]], first: str) -> None:
    waited, waiting, plain, same = first_uses[first]
    assert (waited, waiting, plain) == (True, True, [False, 1])
    assert same == [True] * 11


def test_another_version_of_torch_is_imported_as_it_is() -> None:
    waited, waiting, plain, same = compiled(["pass"], "another")["pass"]
    assert (waited, waiting, plain) == (False, False, [False, 1])
    assert same == [True] * 11


# --- What a pipeline does without ---


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Manifest, Located]:
    """A manifest of two components whose folder is here, and where it lies."""
    for name in ("transformer", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"1" * 10)
    files = {f"{name}/{file}" for name in ("transformer", "vae") for file in ("config.json", "model.safetensors")}
    source = source_json(files={file: {"size": 1, "digest": f"sha256:{digest(file)}"} for file in sorted(files)})
    return manifest(sources=[source]), Located({BASE: tmp_path})


def test_torchao_is_taken_for_absent_unless_the_pipeline_is_of_it(sources: Any, tmp_path: Path) -> None:
    plain, located = sources
    assert start.absent(plain, located) == ["torchao"]
    quantized = {"mode": "int8", "backend": "torchao", "version": "1", "components": ["vae"], "exclude": []}
    of_it = manifest(config_json(quantization=quantized), sources=[])
    assert start.absent(of_it, located) == []
    (tmp_path / "vae" / "config.json").write_text('{"quantization_config": {"quant_method": "torchao"}}')
    assert start.absent(plain, located) == []


def test_a_pipeline_that_torchao_quantized_has_torchao(demo: Warm) -> None:
    demo("build", "demo", "--quantize", "int8", "--quantize-backend", "torchao", "--name", "ao", check=True)
    shown = json.loads(demo("pipelines", "show", "ao", "--json", check=True).stdout)["manifest"]
    assert start.absent(Manifest.from_json(shown), Located({})) == []
    imported = cold(demo, "this torch", "generate", "ao", *PROMPT, "--overwrite")
    assert {"torchao", COMPILER} <= imported


def test_the_weights_that_are_loaded_are_read_ahead(
    sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, located = sources
    both = [tmp_path / name / "model.safetensors" for name in ("transformer", "vae")]
    assert list(start.weights(plain, located)) == both
    how = Quantization("int8", "quanto", "0.2.7", ("transformer",))
    stored = replace(plain, stored=StoredWeights(how, "0" * 64, {"transformer": QuantizedComponent(1)}))
    assert list(start.weights(stored, located)) == both  # while they are being made
    kept = tmp_path / "kept"
    assert list(start.weights(stored, replace(located, weights=kept))) == [kept / "transformer.safetensors", both[1]]

    read: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, at, size, advice: read.append(size), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    start.read_ahead(both)
    start.read_ahead([tmp_path / "gone"])
    monkeypatch.setattr(start.machine, "host_memory", lambda: 39)
    start.read_ahead(both)  # more than half of the memory
    assert read == [10, 10]


def test_what_is_imported_lean_is_collected_no_more_and_what_comes_later_is() -> None:
    enabled, frozen, hidden = answer(
        """
        import gc, json, sys
        from diffpipe.engine.loading import imports
        with imports.lean(absent=["torchao"]):
            import torch
            during = gc.isenabled(), sys.modules["torchao"]
        print(json.dumps([[during[0], gc.isenabled()], gc.get_freeze_count(), [during[1], "torchao" in sys.modules]]))
        """
    )
    assert (enabled, hidden) == ([False, True], [None, False])
    assert frozen > 10_000


# --- The end of the process ---

# With something in the place of torch, so that it is quick; "torn" is printed by an interpreter that ends as usual.
END = """
    import atexit, os, sys, types

    class Last:
        def __del__(self, write=os.write):
            write(1, b"torn ")

    last = Last()
    sys.modules["torch"] = types.ModuleType("torch")
    sys.argv = ["diffpipe", *sys.argv[2:]]
    atexit.register(print, "atexit", end=" ")
    from diffpipe.__main__ import main
    {first}
    main()
"""


def end(first: str, *words: str, **options: Any) -> Done:
    return python(END.format(first=first), "-", *(words or ("--version",)), **options)


def test_a_process_with_torch_ends_at_once_when_all_is_written() -> None:
    done = end("print('printed', end=' ')")
    assert (done.returncode, done.stdout.split()[0], done.stdout.split()[-1]) == (0, "printed", "atexit")
    assert "torn" not in done.stdout
    assert (end("", "generate", "nothing").returncode, end("", "--nothing").returncode) == (3, 2)


@pytest.mark.parametrize(
    "first",
    [
        "del sys.modules['torch']",
        "sys.settrace(lambda *_: None)",
        "sys.setprofile(lambda *_: None)",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.5), print('waited'))).start()",
        "import multiprocessing as many; many.active_children = lambda: [None]",
        "called = main; main = lambda: called()",
        "os.environ['PYTHONINSPECT'] = '1'",
    ],
    ids=["no torch", "traced", "profiled", "a thread", "a child", "called by another program", "to be inspected"],
)  # fmt: skip
def test_a_process_that_something_waits_for_ends_as_usual(first: str) -> None:
    done = end(first)
    assert (done.returncode, "torn" in done.stdout, "atexit" in done.stdout) == (0, True, True)
    assert ("waited" in done.stdout) == ("waited" in first)


def test_a_developer_s_interpreter_ends_as_usual() -> None:
    assert "torn" in end("", env={"PYTHONDEVMODE": "1"}).stdout


def test_a_pipe_that_nobody_reads_has_the_exit_code_of_any_python() -> None:
    """120: the interpreter could not flush what was printed (Py_FinalizeEx)."""
    read, write = os.pipe()
    os.close(read)
    done = end("atexit.register(sys.stdout.write, 'kept')", "--nothing", stdout=write, env={"PYTHONUNBUFFERED": ""})
    os.close(write)
    assert done.returncode == 120
    assert "Traceback" not in done.stderr


def test_the_log_of_a_run_is_whole(cli: Cli, demo: Warm) -> None:
    words = ("--log-file", "run.log", "-o", "logged.png", "--overwrite")
    cli.fresh("generate", "demo", *PROMPT, *words, check=True)
    assert (cli.cwd / "run.log").read_text().splitlines()[-1].partition("-> ")[2].startswith("logged.png")


# --- Completion ---


@pytest.mark.parametrize(("words", "said"), [("--gui", "--guidance-scale"), ("--width 32 --hei", "--height")])
def test_completing_a_flag_checks_no_values(cli: Cli, demo: Warm, words: str, said: str) -> None:
    typed = f"diffpipe generate demo {words}"
    asked = {"_DIFFPIPE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    assert cli(env=asked).stdout.split() == [said]
    imported = cold(cli, "this torch", env=asked)
    assert "diffpipe.cli.generate" in imported
    assert imported & {"pydantic", "torch"} == set()


def test_a_flag_that_was_given_is_not_offered_again(cli: Cli, demo: Warm) -> None:
    asked = {"_DIFFPIPE_COMPLETE": "complete_bash"}

    def ask(words: str) -> list[str]:
        typed = f"diffpipe generate demo {words}"
        typing = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
        return cli(env={**asked, **typing}).stdout.split()

    assert ask("--seed 1 --se") == ["--set"]
    assert ask("--se") == ["--seed", "--set"]


# --- The benchmark ---


def test_the_benchmark_tells_medians_of_pairs_and_what_is_missed() -> None:
    script = [bench.Run(10, 8), bench.Run(20, 8), bench.Run(30, 8)]
    runs = {"script": script, "cold": [bench.Run(6, 4), bench.Run(20, 4), bench.Run(24, 4)]}
    kept, over = (bench.against("cold", runs, "cold", "script", "the script", limit) for limit in (0.8, 0.7))
    assert (bench.missed(kept), bench.missed(over), bench.missed(bench.Row("script", script))) == (False, True, False)
    assert bench.table([bench.Row("script", script), kept, over]).splitlines()[2:] == [
        "| script | 20.00 | 8.00 |  |  |  |",
        "| cold | 20.00 | 4.00 | 0.80 of the script (0.50 of its processor time) | 0.80 | kept |",
        "| cold | 20.00 | 4.00 | 0.80 of the script (0.50 of its processor time) | 0.70 | MISSED |",
    ]


def test_the_benchmark_refuses_ways_that_make_other_pictures(tmp_path: Path) -> None:
    for name, data in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).write_bytes(data)
    bench.same(tmp_path, "one", "same")
    with pytest.raises(SystemExit, match="one and other differ"):
        bench.same(tmp_path, "one", "other")
