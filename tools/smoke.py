"""Make one of each with the packages that are installed: python tools/smoke.py FOLDER

Pictures of the demo model, plain, with a LoRA, and quantized by each library; a tiny Wan's video; a picture whose
denoiser is a .gguf file and one whose tokenizer is a spiece.model. All through the real command line; nothing is
fetched. FOLDER gets the results. It needs the extras gguf, sentencepiece and torchao.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PANDA = ("--prompt", "a panda on a pink background", "--seed", "1")
TINY = ("--prompt", "a cat", "--seed", "1", "--num-inference-steps", "2", "--width", "64", "--height", "32")
GGUF = ("--model", "{tiny}/flux-transformer.gguf", "--config", "{tiny}/flux")

#: File -> how its pipeline is built, and the arguments it is made with. {tiny}: the tests' tiny checkpoints.
RESULTS = {
    "demo.png": (("demo",), PANDA),
    "lora.png": (("demo", "--lora", "demo:pencil@0.8"), PANDA),
    "quanto.png": (("demo", "--quantize", "int8", "--quantize-backend", "quanto"), PANDA),
    "torchao.png": (("demo", "--quantize", "int8", "--quantize-backend", "torchao"), PANDA),
    "wan.mp4": (("wan", "--model", "{tiny}/wan"), (*TINY, "--num-frames", "5")),
    "gguf.png": (("flux", *GGUF), TINY),
    "spiece.png": (("flux", "--model", "{tiny}/spiece"), TINY),
}


def write_tiny(folder: Path) -> None:
    """The tiny checkpoints that RESULTS names."""
    sys.path.insert(0, str(ROOT / "tests"))
    import checkpoints
    import checkpoints_video

    with_spiece_model(checkpoints.flux(folder / "spiece"))
    checkpoints.flux(folder / "flux")
    checkpoints.flux_transformer_gguf(folder / "flux-transformer.gguf")
    dict(named[:2] for named in checkpoints_video.MAKERS)["wan"](folder / "wan")


def with_spiece_model(folder: Path) -> None:
    """Put a spiece.model in the place of what a Flux folder's second tokenizer is kept as."""
    from sentencepiece import SentencePieceTrainer

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    for file in ("tokenizer.json", "special_tokens_map.json"):
        (folder / "tokenizer_2" / file).unlink(missing_ok=True)
    SentencePieceTrainer.train(
        sentence_iterator=iter(letters),
        model_prefix=str(folder / "tokenizer_2" / "spiece"),
        vocab_size=len(letters) + 4,  # the space, and three of T5's
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )


def make(folder: Path, file: str) -> bool:
    """Build and generate one of RESULTS: whether it is there. Prints its seconds, or what was said instead."""
    build, arguments = RESULTS[file]
    name, words = Path(file).stem, [word.format(tiny=folder / "tiny") for word in build]
    environment = os.environ | {
        "DIFFPIPE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    started = time.monotonic()
    for command in (
        ["build", *words, "--name", name],
        ["generate", name, *arguments, "--output", str(folder / file), "--overwrite"],
    ):
        whole = [sys.executable, "-m", "diffpipe", *command]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{file}: NOT MADE, exit code {done.returncode} of diffpipe {' '.join(command)}\n{done.stderr}")
            return False
    print(f"{file}: {(folder / file).stat().st_size:,} bytes, {time.monotonic() - started:.0f} s", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    write_tiny(folder / "tiny")
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        made = list(workers.map(lambda file: make(folder, file), RESULTS))
    missing = [file for file, there in zip(RESULTS, made, strict=True) if not there]
    if missing:
        raise SystemExit(f"not made: {' '.join(missing)}")


if __name__ == "__main__":
    main()
