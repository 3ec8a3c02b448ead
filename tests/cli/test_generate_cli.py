"""`diffpipe generate` as a user runs it: help, checks before loading, results, files, logs, and damaged entries."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Done, Warm
from PIL import Image

SMALL = ("--prompt", "a fox", "--width", 32, "--height", 32, "--num-inference-steps", 2)
SECRET = "hf_secretsecretsecretsecret"
Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def models(warm: Warm, checkpoints: Path) -> Path:
    """Three pipelines in the cache, `flux`, `flux-img2img` and `flux-inpaint`, all of the folder that this returns."""
    for kind in ("text2image", "img2img", "inpaint"):
        warm("build", "flux", "--type", kind, "--model", checkpoints / "flux", "--dtype", "float32", check=True)
    return checkpoints / "flux"


@pytest.fixture
def work(models: Path, tmp_path: Path) -> Path:
    """An empty working folder, with pipelines in the cache."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def pictures(work: Path) -> Path:
    """A picture, a mask of its size, one of another size, and a file that is no picture."""
    Image.linear_gradient("L").resize((48, 48)).convert("RGB").save(work / "start.png")
    mask = Image.new("L", (48, 48), 0)
    mask.paste(255, (0, 0, 24, 48))
    mask.save(work / "mask.png")
    mask.resize((32, 32)).save(work / "small.png")
    (work / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return work


def refused(done: Done) -> tuple[int, str, str]:
    """Exit code, message and hint; nothing on stdout, two lines on stderr."""
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    return done.returncode, first.removeprefix("error: "), second.removeprefix("  try: ")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Help

FITTING = {
    "prompt", "prompt-2", "negative-prompt", "negative-prompt-2", "true-cfg-scale", "height", "width", "sigmas",
    "num-inference-steps", "guidance-scale", "num-images-per-prompt", "joint-attention-kwargs", "max-sequence-length",
}  # fmt: skip
UNFITTING = {
    "ip-adapter-image", "negative-ip-adapter-image",
    "generator", "latents", "prompt-embeds", "pooled-prompt-embeds", "ip-adapter-image-embeds",
    "negative-prompt-embeds", "negative-ip-adapter-image-embeds", "negative-pooled-prompt-embeds", "output-type",
    "return-dict", "callback-on-step-end", "callback-on-step-end-tensor-inputs",
}  # fmt: skip


def test_these_are_all_the_arguments_of_the_call() -> None:
    import inspect

    from diffusers import FluxPipeline

    names = {name.replace("_", "-") for name in inspect.signature(FluxPipeline.__call__).parameters} - {"self"}
    assert names == FITTING | UNFITTING


def test_help_shows_every_fitting_argument_with_default_and_help(cli: Cli, work: Path) -> None:
    done = cli.light("generate", "flux", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    section = done.stdout.partition("Call arguments:")[2].partition("Run options:")[0]
    entries = {
        match[1]: " ".join(match[0].split())
        for match in re.finditer(r"^  --([\w-]+)[^\n]*(?:\n {10,}[^\n]*)*", section, flags=re.MULTILINE)
    }
    assert set(entries) == FITTING
    kinds = {name: text.split()[1] for name, text in entries.items()}
    assert {kinds[name] for name in ("width", "height", "num-inference-steps", "max-sequence-length")} == {"INTEGER"}
    assert {kinds[name] for name in ("guidance-scale", "true-cfg-scale", "sigmas")} == {"NUMBER"}
    assert (kinds["prompt"], kinds["joint-attention-kwargs"]) == ("TEXT", "JSON")
    defaults = {
        name: text.partition("[default: ")[2].rstrip("]") for name, text in entries.items() if "[default" in text
    }
    assert defaults == {
        "true-cfg-scale": "1.0",
        "num-inference-steps": "28",
        "guidance-scale": "3.5",
        "num-images-per-prompt": "1",
        "max-sequence-length": "512",
    }
    assert "The number of denoising steps." in entries["num-inference-steps"]
    assert "[required]" in entries["prompt"]
    assert all(len(text.split()) > 5 for text in entries.values())


def test_help_lists_the_pipelines(cli: Cli, work: Path) -> None:
    shown = cli.light("generate", "--help").stdout
    for name, class_name in (("flux", "FluxPipeline"), ("flux-inpaint", "FluxInpaintPipeline")):
        assert re.search(rf"^  {name} +{class_name} from flux$", shown, flags=re.MULTILINE)


# What is refused, before torch is imported

BAD: dict[str, tuple[str, int, str, str]] = {
    "a misspelt flag": (
        "flux --prompt x --widht 32",
        2,
        "diffpipe generate flux has no option --widht",
        "did you mean --width?",
    ),
    "a misspelt pipeline": ("flxu --prompt x", 3, "there is no pipeline 'flxu'", "did you mean flux"),
    "no such key": ("abcdef123456 --prompt x", 3, "there is no pipeline 'abcdef123456'", "diffpipe pipelines list "),
    "width": (
        "flux --prompt x --width 33",
        2,
        "--width 33 is no multiple of 16",
        "the nearest: 32 or 48; --fit takes it by itself",
    ),
    "width by --set": (
        "flux --prompt x --set width=33",
        2,
        "--width 33 is no multiple of 16",
        "the nearest: 32 or 48; --fit takes it by itself",
    ),
    "no steps": (
        "flux --prompt x --num-inference-steps 0",
        2,
        "--num-inference-steps 0 is out of range",
        "give at least 1",
    ),
    "a negative guidance": (
        "flux --prompt x --guidance-scale -1",
        2,
        "--guidance-scale -1.0 is out of range",
        "give at least 0",
    ),
    "no number": (
        "flux --prompt x --guidance-scale nan",
        2,
        "--guidance-scale nan is not a finite number",
        "give at least 0",
    ),
    "too long": (
        "flux --prompt x --max-sequence-length 513",
        2,
        "--max-sequence-length 513 is out of range",
        "give from 1 to 512",
    ),
    "a negative seed": ("flux --prompt x --seed -1", 2, "--seed -1 is out of range", "seeds go from 0 to "),
    "a long seed": (f"flux --prompt x --seed {2**64}", 2, f"--seed {2**64} is out of range", "seeds go from 0 to "),
    "a last seed too long": (
        f"flux --prompt x --seed {2**64 - 1} --count 2",
        2,
        f"--seed {2**64 - 1} is out of range",
        "seeds go from 0 to ",
    ),
    "a word for a number": (
        "flux --prompt x --width big",
        2,
        "Invalid value for '--width': it must be a whole number",
        "diffpipe generate flux --help",
    ),
    "a fraction of a step": (
        "flux --prompt x --num-inference-steps 2.5",
        2,
        "Invalid value for '--num-inference-steps': it must be a whole number",
        "diffpipe generate flux --help",
    ),
    "a true width": (
        "flux --prompt x --set width=true",
        2,
        "--set width=true: True is no whole number",
        "see --width in --help",
    ),
    "no pictures": (
        "flux --prompt x --count 0",
        2,
        "Invalid value for '--count': it must be greater than or equal to 1",
        "",
    ),
    "no prompt": ("flux", 2, "--prompt is missing", "this pipeline needs it: "),
    "an unknown argument": ("flux --prompt x --set foo=1", 2, "--set foo=1: the pipeline takes no 'foo'", "it takes: "),
    "a near argument": (
        "flux --prompt x --set guidance_scal=1",
        2,
        "--set guidance_scal=1: the pipeline takes no 'guidance_scal'",
        "did you mean guidance_scale?",
    ),
    "an argument of diffpipe's own": (
        "flux --prompt x --set output_type=pt",
        2,
        "--set output_type=pt: the pipeline takes no 'output_type'",
        "",
    ),
    "no JSON number": (
        'flux --prompt x --joint-attention-kwargs {"scale":NaN}',
        2,
        '--joint-attention-kwargs is no JSON at column 1: {"scale":NaN}',
        "for example",
    ),
    "no finite number": (
        "flux --prompt x --guidance-scale inf",
        2,
        "--guidance-scale inf is not a finite number",
        "give at least 0",
    ),
    "too many": (
        "flux --prompt x --count 5000000000",
        2,
        "--count 5000000000 is out of range",
        "give from 1 to 1000000",
    ),
    "an empty output": ("flux --prompt x --output=", 2, "--output is no path", "for example out/"),
    "no value": ("flux --prompt x --set width", 2, "--set width is not KEY=JSON", ""),
    "broken JSON": (
        "flux --prompt x --joint-attention-kwargs {",
        2,
        "--joint-attention-kwargs is no JSON at column 2: {",
        "for example",
    ),
    "a list for an object": (
        "flux --prompt x --joint-attention-kwargs [1]",
        2,
        "--joint-attention-kwargs must be a JSON object",
        "for example",
    ),
    "an unknown field": (
        "flux --prompt x -o {foo}.png",
        2,
        "--output: there is no field {foo}",
        "the fields are: name key",
    ),
    "an attribute of a field": ("flux --prompt x -o {name.x}.png", 2, "--output: there is no field {name.x}", ""),
    "a bad format spec": ("flux --prompt x -o {seed:zz}.png", 2, "--output: ", "for example out/"),
    "an open brace": ("flux --prompt x -o {", 2, "--output: ", "for example out/"),
    "an unknown ending": (
        "flux --prompt x -o x.gif",
        2,
        "pictures are not written as .gif",
        "use .png, .jpg, .jpeg or .webp",
    ),
    "two formats": (
        "flux --prompt x -o x.png --format jpg",
        2,
        "--output ends in .png but --format is jpg",
        "leave one",
    ),
    "no image": ("flux-inpaint --prompt x", 2, "--image is missing", "this pipeline needs it: "),
    "no mask": ("flux-inpaint --prompt x --image start.png", 2, "--mask-image is missing", "this pipeline needs it: "),
    "an image that is not there": (
        "flux-img2img --prompt x --image none.png",
        3,
        "--image: there is no file none.png",
        "check the path",
    ),
    "two images where one is taken": (
        "flux-img2img --prompt x --image start.png --image start.png",
        2,
        "--image is given 2 times",
        "this pipeline takes one",
    ),
    "a width by flag and --set": (
        "flux --prompt x --width 32 --set width=64",
        2,
        "width is given by itself and by --set",
        "leave one of them out",
    ),
    "no width to fit": ("flux --prompt x --width 0 --fit", 2, "--width 0 is out of range", "give at least 16"),
    "no machine's size": (
        "flux --prompt x --width 1000000 --height 1000000",
        5,
        "1000000 x 1000000: some ",
        "",
    ),
    "a folder for an image": ("flux-img2img --prompt x --image .", 2, "--image: . is a folder", "name a file in it"),
    "strength": (
        "flux-img2img --prompt x --image start.png --strength 2",
        2,
        "--strength 2.0 is out of range",
        "give from 0 to 1",
    ),
    "strength that is no number": (
        "flux-img2img --prompt x --image start.png --strength nan",
        2,
        "--strength nan is not a finite number",
        "give from 0 to 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_before_loading(cli: Cli, pictures: Path, case: str) -> None:
    command, code, message, hint = BAD[case]
    before = files(pictures)
    found = refused(cli.light("generate", *command.split(), cwd=pictures))
    assert (found[0], found[1][: len(message)], found[2][: len(hint)]) == (code, message, hint)
    assert files(pictures) == before


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        (
            "flux-img2img --image broken.png",
            "--image: cannot read broken.png: it is no picture, or it is damaged",
            "give a PNG, JPEG or WebP file",
        ),
        (
            "flux-inpaint --image start.png --mask-image small.png",
            "--mask-image is 32 x 32 but --image is 48 x 48",
            "make the mask the size of the picture, or pass --fit",
        ),
    ],
)
def test_pictures_are_read_before_loading(cli: Cli, pictures: Path, command: str, message: str, hint: str) -> None:
    done = cli("generate", *command.split(), "--prompt", "x", cwd=pictures, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "PIL" in done.stderr
    assert not re.search(r"\| +(torch|diffusers)$", done.stderr, flags=re.MULTILINE)
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, told) == (2, [f"error: {message}", f"  try: {hint}"])


# Results


def test_two_processes_make_the_same_bytes(cli: Cli, work: Path) -> None:
    for name, run in (("one", cli), ("two", cli.fresh)):
        done = run("generate", "flux", *SMALL, "--seed", 5, "-o", f"{name}.png", cwd=work, check=True)
        assert (done.stdout, done.stderr) == (f"{name}.png\n", "")
    assert (work / "one.png").read_bytes() == (work / "two.png").read_bytes()


def test_count_counts_seeds_up_and_each_picture_stands_alone(warm: Warm, work: Path) -> None:
    done = warm("generate", "flux", *SMALL, "--seed", 7, "--count", 3, "--json", cwd=work, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["seed"], line["index"], line["path"]) for line in lines] == [
        (7, 1, "flux-7.png"),
        (8, 2, "flux-8.png"),
        (9, 3, "flux-9.png"),
    ]
    assert all((line["width"], line["height"]) == (32, 32) and line["seconds"] > 0 for line in lines)
    warm("generate", "flux", *SMALL, "--seed", 8, "-o", "single.png", cwd=work, check=True)
    made = {path.name: path.read_bytes() for path in work.iterdir()}
    assert made["single.png"] == made["flux-8.png"]
    assert len(set(made.values())) == 3


def test_a_fresh_seed_is_reported_and_makes_the_picture_again(warm: Warm, work: Path) -> None:
    done = warm("generate", "flux", *SMALL, "--json", "-o", "a.png", cwd=work, check=True)
    seed = json.loads(done.stdout)["seed"]
    assert done.stderr == f"seed {seed}\n"
    other = warm("generate", "flux", *SMALL, "--json", "-o", "b.png", cwd=work, check=True)
    assert json.loads(other.stdout)["seed"] != seed
    warm("generate", "flux", *SMALL, "--seed", seed, "-o", "c.png", cwd=work, check=True)
    assert (work / "c.png").read_bytes() == (work / "a.png").read_bytes()


def test_arguments_reach_the_pipeline(warm: Warm, work: Path) -> None:
    """A flag and --set for the same argument make the same picture, another than without."""
    plain = ("generate", "flux", *SMALL, "--seed", 1)
    warm(*plain, "-o", "plain.png", cwd=work, check=True)
    guided = ("--negative-prompt", "rain", "--true-cfg-scale", "4")
    warm(*plain, *guided, "-o", "flag.png", cwd=work, check=True)
    set_ = ("--set", "negative_prompt=rain", "--set", "true-cfg-scale=4")
    warm(*plain, *set_, "-o", "set.png", cwd=work, check=True)
    made = {path.name: path.read_bytes() for path in work.iterdir()}
    assert made["flag.png"] == made["set.png"] != made["plain.png"]


def test_several_pictures_a_prompt(warm: Warm, work: Path) -> None:
    done = warm("generate", "flux", *SMALL, "--seed", 1, "--num-images-per-prompt", 2, cwd=work, check=True)
    assert done.stdout.split() == ["flux-1.png", "flux-1-2.png"]
    assert (work / "flux-1.png").read_bytes() != (work / "flux-1-2.png").read_bytes()


def test_image_to_image_and_inpainting(warm: Warm, pictures: Path) -> None:
    from_picture = (*SMALL[:2], "--width", 48, "--height", 48, "--num-inference-steps", 2, "--image", "start.png")
    for name, extra in (("flux-img2img", ()), ("flux-inpaint", ("--mask-image", "mask.png"))):
        command = ("generate", name, *from_picture, "--strength", "1", *extra, "--seed", 1)
        warm(*command, "-o", f"{name}.png", cwd=pictures, check=True)
        with Image.open(pictures / f"{name}.png") as made:
            assert (made.format, made.mode, made.size) == ("PNG", "RGB", (48, 48))
    # black in the mask is kept: the two differ there
    assert (pictures / "flux-img2img.png").read_bytes() != (pictures / "flux-inpaint.png").read_bytes()


# Files


@pytest.mark.parametrize(
    ("options", "name", "kind"),
    [
        ((), "flux-3.png", "PNG"),
        (("-o", "x.jpg"), "x.jpg", "JPEG"),
        (("-o", "x.webp"), "x.webp", "WEBP"),
        (("--format", "webp"), "flux-3.webp", "WEBP"),
        (("-o", "x"), "x.png", "PNG"),
        (("-o", "new/", "--format", "jpg"), "new/flux-3.jpg", "JPEG"),
        (("-o", "a/{seed:05d}/{name}_{index:02d}-{prompt:.3}.{ext}"), "a/00003/flux_01-a-f.png", "PNG"),
        (("-o", "{ext}/{prompt:.3}"), "png/a-f.png", "PNG"),
    ],
)
def test_where_and_how_a_picture_is_written(
    warm: Warm, work: Path, options: tuple[str, ...], name: str, kind: str
) -> None:
    done = warm("generate", "flux", *SMALL, "--seed", 3, *options, cwd=work, check=True)
    assert done.stdout == f"{name}\n"
    assert files(work) == {name}
    with Image.open(work / name) as made:
        made.load()
        assert (made.format, made.mode, made.size) == (kind, "RGB", (32, 32))


def test_a_prompt_in_a_file_name_is_made_safe(warm: Warm, work: Path) -> None:
    prompt = '../../etc/passwd: a "fox"?\n*' + "ü" * 300
    command = ("generate", "flux", *SMALL[2:], "--prompt", prompt, "--seed", 1, "-o", "{prompt}-{seed}.png")
    done = warm(*command, cwd=work, check=True)
    (made,) = files(work)
    assert done.stdout == f"{made}\n"
    assert re.fullmatch(r"etc-passwd-a-fox-ü+[-\d]*\.png", made)
    assert len(made.encode()) <= 255


def test_files_are_never_replaced_unasked(cli: Cli, warm: Warm, work: Path) -> None:
    (work / "mine.png").write_bytes(b"mine")
    (work / "flux-1.png").write_bytes(b"mine")
    template = ("generate", "flux", *SMALL, "--seed", 1, "-o", "mine.png")
    assert refused(cli.light(*template, cwd=work)) == (
        2,
        "mine.png exists already",
        "choose another --output, or pass --overwrite",
    )
    default = warm("generate", "flux", *SMALL, "--seed", 1, cwd=work, check=True)
    assert default.stdout == "flux-1-2.png\n"  # the default name steps aside
    assert (work / "mine.png").read_bytes() == (work / "flux-1.png").read_bytes() == b"mine"
    warm(*template, "--overwrite", cwd=work, check=True)
    assert (work / "mine.png").read_bytes() == (work / "flux-1-2.png").read_bytes()


def test_pictures_of_one_run_never_share_a_name(warm: Warm, work: Path) -> None:
    done = warm("generate", "flux", *SMALL, "--seed", 1, "--count", 3, "-o", "x.png", cwd=work, check=True)
    assert len(set(done.stdout.split())) == 3
    assert files(work) == set(done.stdout.split())


@pytest.mark.skipif(os.name != "posix" or not os.path.exists("/proc/self"), reason="needs Linux's /proc")
def test_a_folder_that_cannot_be_written(warm: Warm, work: Path) -> None:
    """/proc takes no files, even from root."""
    done = warm("generate", "flux", *SMALL, "--seed", 1, "-o", "/proc/diffpipe/x.png", cwd=work)
    code, message, hint = refused(done)
    assert (code, hint) == (6, "choose another --output")
    assert message.startswith("cannot write /proc/diffpipe/x.png: ")
    assert files(work) == set()


def test_a_file_for_a_folder(warm: Warm, work: Path) -> None:
    (work / "taken").write_bytes(b"")
    code, message, _ = refused(warm("generate", "flux", *SMALL, "--seed", 1, "-o", "taken/x.png", cwd=work))
    assert (code, message) == (2, f"--output: {work / 'taken'} is a file, not a folder")
    assert files(work) == {"taken"}


# What is told


def test_quiet_tells_nothing_but_the_result(warm: Warm, work: Path) -> None:
    done = warm("generate", "flux", *SMALL, "--quiet", "-o", "x.png", cwd=work, check=True)
    assert (done.stdout, done.stderr) == ("x.png\n", "")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_steps_show_on_a_terminal_unless_quiet(cli: Cli, work: Path, quiet: tuple[str, ...]) -> None:
    import pty

    terminal, stderr = pty.openpty()
    words = ("generate", "flux", *SMALL, "--count", 2, "--seed", 1, *quiet)
    with cli.begin(*words, cwd=work, env={"TERM": "xterm"}, stderr=stderr) as done:
        os.close(stderr)
        shown = b"".join(iter(lambda: _read(terminal), b"")).decode()
        assert done.stdout
        assert done.stdout.read() == "flux-1.png\nflux-2.png\n"
    os.close(terminal)
    assert done.returncode == 0
    if quiet:
        assert shown == ""
    else:
        assert all(text in shown for text in ("flux 1/2", "flux 2/2", "2/2"))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


LOG = [
    r"diffpipe\.run: imports took \d+\.\d\d s; device cpu",
    r"diffpipe\.run: FluxPipeline loaded in \d+\.\d\d s \(float32\)",
    r"diffpipe\.run: seed 1: \d+\.\d\d s -> x\.png; peak host memory \d+ MB, of it mapped files \d+ MB",
]


@pytest.mark.parametrize("where", ["stderr", "file"])
def test_the_log_has_stages_times_device_and_memory_but_no_token(warm: Warm, work: Path, where: str) -> None:
    chosen = ("-v",) if where == "stderr" else ("--log-file", "run.log")
    command = ("generate", "flux", *SMALL[2:], "--prompt", SECRET, "--seed", 1, "-o", "x.png", *chosen)
    done = warm(*command, cwd=work, env={"HF_TOKEN": SECRET}, check=True)
    log = done.stderr if where == "stderr" else (work / "run.log").read_text()
    for line in LOG:
        assert re.search(rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} INFO +{line}$", log, flags=re.MULTILINE), log
    assert SECRET not in log + done.stderr
    assert (where == "file") == (done.stderr == "")


def test_a_log_that_cannot_be_written(cli: Cli, work: Path) -> None:
    done = cli.light("generate", "flux", *SMALL, "--log-file", "no/run.log", cwd=work)
    assert refused(done) == (
        6,
        "cannot write the log no/run.log: No such file or directory",
        "choose another --log-file",
    )


def test_a_token_is_in_no_error(warm: Warm, work: Path) -> None:
    done = warm("generate", SECRET, "--prompt", "x", cwd=work, env={"HF_TOKEN": SECRET})
    assert refused(done)[:2] == (3, "there is no pipeline '[token]'")


def test_ctrl_c_ends_with_130_and_no_part_of_a_picture(cli: Cli, work: Path) -> None:
    steps = ("--prompt", "x", "--width", "256", "--height", "256", "--num-inference-steps", "2000", "--seed", "1")
    with cli.begin("generate", "flux", *steps, "-o", "out/x.png", "--log-file", "log", cwd=work) as process:
        until(lambda: (work / "log").exists() and "loaded in" in (work / "log").read_text())
        time.sleep(0.3)  # into the steps
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert files(work) == {"log"}


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Manifests are data


@pytest.fixture
def entry(warm: Warm, copy_of: Copy, cli: Cli) -> Iterator[tuple[str, Path, Path]]:
    """A pipeline of its own, its entry's folder, and its model's folder."""
    model = copy_of("flux", "own")
    command = ("build", "flux", "--model", model, "--name", "own", "--dtype", "float32", "--json")
    key = json.loads(warm(*command, check=True).stdout)["key"]
    yield "own", cli.home / "pipelines" / key, model
    shutil.rmtree(cli.home / "pipelines" / key, ignore_errors=True)


def edit(path: Path, change: Callable[[dict[str, Any]], None], *, seal: bool) -> None:
    """Change a manifest; `seal` computes its digest anew, as one who knows the format would."""
    from diffpipe.core.canonical import canonical_json, digest

    value = json.loads(path.read_text())
    value.pop("digest")
    before = digest(value)
    change(value)
    value["digest"] = digest(value) if seal else before
    path.write_text(canonical_json(value))


def names_class(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update(pipeline=name)


def names_component(library: str, name: str) -> Callable[[dict[str, Any]], None]:
    """Let the manifest take the autoencoder from elsewhere, of a class it names itself."""

    def change(manifest: dict[str, Any]) -> None:
        for part in manifest["components"]:
            if part["name"] == "vae":
                part.update(library=library, class_name=name)
        base = manifest["sources"][0]
        inside = {path: info for path, info in base["files"].items() if path.startswith("vae/")}
        manifest["sources"].append({**base, "role": "component:vae", "subfolder": "vae", "files": inside})

    return change


ANOTHER_CLASS = (6, "pipeline is not that of its configuration")
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], int, str]] = {
    "a module": (names_class("os"), *ANOTHER_CLASS),
    "a function of a module": (names_class("os.system"), *ANOTHER_CLASS),
    "a dunder": (names_class("__loader__"), *ANOTHER_CLASS),
    "a class that is no pipeline": (names_class("AutoencoderKL"), *ANOTHER_CLASS),
    "a function for a component": (names_component("os", "system"), 2, "there is no system in os"),
    "a class of another package": (names_component("subprocess", "Popen"), 2, "there is no Popen in subprocess"),
    "a path for a module": (names_component("..os", "_Environ"), 6, "library has a form that it cannot have"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_manifest_cannot_name_code(warm: Warm, entry: tuple[str, Path, Path], work: Path, case: str) -> None:
    name, folder, model = entry
    change, expected, message = HOSTILE[case]

    def located(recorded: dict[str, Any]) -> None:
        recorded["locations"]["component:vae"] = str(model)

    edit(folder / "manifest.json", change, seal=True)
    edit(folder / "sources.json", located, seal=True)
    code, found, _ = refused(warm("generate", name, *SMALL, "--seed", 1, cwd=work))
    assert code == expected
    assert message in found
    assert files(work) == set()


@pytest.mark.parametrize(
    "change",
    [
        {"trust": {"pickle": False, "remote_code": True}},
        {"trust": {"pickle": True, "remote_code": False}},
        {"scheduler": {"class": "FluxPipeline", "config": {}}},
        {"dtype": "float16"},
    ],
)
def test_a_manifest_cannot_grant_itself_trust(
    warm: Warm, entry: tuple[str, Path, Path], work: Path, change: dict[str, Any]
) -> None:
    """Its configuration is what the key is the digest of."""
    name, folder, _ = entry
    edit(folder / "manifest.json", lambda manifest: manifest["config"].update(change), seal=True)
    code, message, hint = refused(warm("generate", name, *SMALL, "--seed", 1, cwd=work))
    assert (code, message) == (6, f"the configuration of {folder.name[:12]} is not the one that it was built with")
    assert hint == f"diffpipe pipelines remove {folder.name[:12]}, then build again"


@pytest.mark.parametrize("file", ["manifest.json", "sources.json"])
@pytest.mark.parametrize("how", ["edited", "cut short", "gone"])
def test_a_damaged_entry_says_how_to_mend_it(
    cli: Cli, warm: Warm, entry: tuple[str, Path, Path], work: Path, file: str, how: str
) -> None:
    name, folder, _ = entry
    path = folder / file
    if how == "edited":
        edit(path, lambda value: value.update(by="hand"), seal=False)
    elif how == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    code, message, hint = refused(cli.light("generate", name, *SMALL, cwd=work))
    assert code == 6
    assert message.startswith(f"the cache entry {folder.name[:12]} ")
    assert hint.startswith("build it again: diffpipe build flux --type text2image --model ")
    verified = cli.light("pipelines", "verify", name)
    assert verified.returncode == 6
    assert "damaged" in verified.stdout
    if file == "manifest.json":  # the record of sources still knows the whole command
        mended(warm, hint, name, work)


def mended(warm: Warm, hint: str, name: str, work: Path) -> None:
    """Run the very command that a hint names; then the pipeline generates."""
    words = shlex.split(hint.partition(": ")[2])
    assert words[0] == "diffpipe"
    warm(*words[1:], cwd=work, check=True)
    warm("generate", name, *SMALL, "--seed", 1, "-o", "mended.png", cwd=work, check=True)
    assert files(work) == {"mended.png"}


def test_an_edited_model_is_refused_and_the_named_command_mends_it(
    cli: Cli, warm: Warm, entry: tuple[str, Path, Path], work: Path
) -> None:
    name, folder, model = entry
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, message, hint = refused(cli.light("generate", name, *SMALL, cwd=work))
    assert code == 6
    assert message == (
        f"transformer/diffusion_pytorch_model.safetensors of own was changed since {folder.name[:12]} was built"
    )
    mended(warm, hint, name, work)


def test_a_moved_model_is_refused_and_the_named_command_mends_it(
    cli: Cli, warm: Warm, entry: tuple[str, Path, Path], work: Path
) -> None:
    name, folder, model = entry
    model.rename(model.with_name("away"))
    code, message, hint = refused(cli.light("generate", name, *SMALL, cwd=work))
    assert code == 6
    assert message == f"model_index.json of own was moved or removed since {folder.name[:12]} was built"
    model.with_name("away").rename(model)  # as a user would, or they name the new place
    mended(warm, hint, name, work)


def test_a_touched_model_is_read_again_and_found_the_same(
    warm: Warm, entry: tuple[str, Path, Path], work: Path
) -> None:
    name, _, model = entry
    for path in model.rglob("*.safetensors"):
        os.utime(path, (1e9, 1e9))
    warm("generate", name, *SMALL, "--seed", 1, "-o", "x.png", cwd=work, check=True)
    assert files(work) == {"x.png"}


INTERRUPTED = """
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from diffpipe.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["diffpipe.core.errors", "diffpipe.cli.app", "typer"])
def test_an_interrupt_while_modules_are_imported_is_told_in_a_word(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, module], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
