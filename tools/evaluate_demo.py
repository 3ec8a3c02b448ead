"""Measure the demo model: does it draw what the prompt says, also quantized, and do img2img, inpaint and LoRAs work?

    python tools/evaluate_demo.py                                   # every score of src/diffpipe/demo, about 6 minutes
    python tools/evaluate_demo.py --only base --sheet docs/demo.png # scores of the plain model, and a contact sheet

The folder is loaded with plain diffusers. Prompts are the (subject, colour) pairs that training never showed, each with
a size (none, small, big in turn), random wording and a fixed seed. For each picture

    background  the median colour of its border is nearest to the asked one of the 10 colours
    subject     of the training pictures of all subjects, at all sizes, places and small shifts, on the detected
                background, the nearest in pixels (at a quarter of the resolution) shows the asked subject
    size        the bounding box of what differs from the background is nearest to that of the training picture so big
    place       for further pictures with a placement: the box's centre is nearest to that of the training picture there

Needs what tools/train_demo.py needs, and optimum-quanto.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import train_demo
from PIL import Image, ImageDraw
from train_demo import COLOURS, LAYOUTS, PLACES, SIZE, SIZES, SUBJECTS

SHIFTS = (-2, 0, 2)
BASE_LAYOUTS = ("medium", "small", "big")


# -------------------------------------------------------------------------------------------------------- measuring


@functools.cache
def shapes(work: Path) -> dict[str, dict[int, np.ndarray]]:
    train_demo.fetch(work)
    return train_demo.sprites(work)


def reference(
    work: Path, subject: str, colour: tuple[int, int, int], layout: str, shift: tuple[int, int] = (0, 0)
) -> Image.Image:
    """The training picture of a subject at the middle size of a layout."""
    dx, dy = PLACES.get(layout, (0, 0))
    centre = (SIZE // 2 + dx + shift[0], SIZE // 2 + dy + shift[1])
    return train_demo.compose(shapes(work)[subject][SIZES.get(layout, SIZES["small"])[1]], colour, centre)


def quarter(pixels: np.ndarray) -> np.ndarray:
    """Mean of every 4 x 4 block: (128, 128, channels) to (32, 32, channels)."""
    return pixels.reshape(SIZE // 4, 4, SIZE // 4, 4, -1).mean(axis=(1, 3))


@functools.cache
def layers(work: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What all training pictures show: subject names (n,), colour times cover (n, 3072) and bare background (n, 3072).

    A picture on any background is then foreground + bare * background, with no need to draw it again.
    """
    names, foreground, bare = [], [], []
    for subject in SUBJECTS:
        for layout in LAYOUTS:
            for shift in ((x, y) for x in SHIFTS for y in SHIFTS):
                black, white = (
                    quarter(np.asarray(reference(work, subject, (level,) * 3, layout, shift), dtype=np.float32))
                    for level in (0, 255)
                )
                names.append(subject)
                foreground.append(black.ravel())
                bare.append((white - black).ravel() / 255)
    return names, np.stack(foreground), np.stack(bare)


@functools.lru_cache(maxsize=1)
def references(work: Path, colour: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Subject names (n,), quarter-size pictures (n, 3072) on one background, and their squared lengths (n,)."""
    names, foreground, bare = layers(work)
    rows = foreground + bare * np.tile(np.array(COLOURS[colour], dtype=np.float32), (SIZE // 4) ** 2)
    return names, rows, (rows**2).sum(axis=1)


def background(image: Image.Image) -> np.ndarray:
    """Median colour of the 2-pixel border."""
    pixels = np.asarray(image, dtype=np.float32)
    border = [
        pixels[:2].reshape(-1, 3),
        pixels[-2:].reshape(-1, 3),
        pixels[:, :2].reshape(-1, 3),
        pixels[:, -2:].reshape(-1, 3),
    ]
    return np.median(np.concatenate(border), axis=0)


def nearest_colour(rgb: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.abs(rgb - np.array(COLOURS[name])).sum()))


def nearest_subject(work: Path, image: Image.Image, colour: str) -> str:
    names, rows, lengths = references(work, colour)
    seen = quarter(np.asarray(image, dtype=np.float32)).ravel()
    return names[int((lengths - 2 * rows @ seen).argmin())]


def box(image: Image.Image) -> tuple[float, float, float]:
    """Centre x, centre y and longest side of what differs from the background by more than 36 of 255 in some channel.

    A row or column counts if it has 3 such pixels, so that a speck does not stretch the box.
    """
    differs = np.abs(np.asarray(image, dtype=np.float32) - background(image)).max(axis=2) > 36
    columns, rows = (np.flatnonzero(differs.sum(axis=axis) >= 3) for axis in (0, 1))
    if not len(columns) or not len(rows):
        return SIZE / 2, SIZE / 2, 0.0
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    return (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2, float(max(width, height))


def nearest_size(work: Path, image: Image.Image, subject: str, colour: str) -> str:
    side = box(image)[2]
    return min(BASE_LAYOUTS, key=lambda size: abs(box(reference(work, subject, COLOURS[colour], size))[2] - side))


def nearest_place(work: Path, image: Image.Image, subject: str, colour: str) -> str:
    """The placement (or "small", the middle) whose training picture has the nearest box centre."""
    x, y, _ = box(image)
    centres = {place: box(reference(work, subject, COLOURS[colour], place)) for place in ("small", *PLACES)}
    return min(centres, key=lambda place: abs(x - centres[place][0]) + abs(y - centres[place][1]))


# --------------------------------------------------------------------------------------------------------- pictures


def prompts(count: int, layouts: tuple[str, ...], seed: int) -> list[tuple[str, str, str, str]]:
    """`count` unseen (subject, colour, layout, prompt) in a fixed order; the wording always names the colour."""
    rng = random.Random(seed)
    pairs = sorted(train_demo.held_out())
    rng.shuffle(pairs)
    result = []
    for i, (subject, colour) in enumerate(pairs[:count]):
        layout = layouts[i % len(layouts)]
        text = ""
        while colour not in text.split(subject)[-1] and colour not in text.split(subject)[0]:
            text = train_demo.caption(subject, colour, layout, rng)
        result.append((subject, colour, layout, text))
    return result


def generate(
    pipe: object, texts: list[str], options: argparse.Namespace, seed: int = 0, **more: object
) -> list[Image.Image]:
    """Pictures of all prompts, sixteen at a time, picture i with seed `seed` + i."""
    images: list[Image.Image] = []
    for start in range(0, len(texts), 16):
        part = texts[start : start + 16]
        arguments = {
            "num_inference_steps": options.steps,
            "guidance_scale": options.guidance,
            "max_sequence_length": options.length,
            "height": SIZE,
            "width": SIZE,
        } | more
        if options.true_cfg > 1:
            arguments |= {"true_cfg_scale": options.true_cfg, "negative_prompt": [""] * len(part)}
        for key in ("image", "mask_image"):
            if key in arguments:
                arguments[key] = arguments[key][start : start + 16]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images += pipe(prompt=part, generator=generators, **arguments).images
    return images


def load(folder: Path) -> object:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(str(folder), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quantized(folder: Path, kind: str) -> object:
    """The pipeline with quanto weights in transformer and both text encoders."""
    from optimum.quanto import freeze, qfloat8, qint4, qint8, quantize

    if kind == "int4":
        plain_unpack()
    pipe = load(folder)
    for name in train_demo.TRAINED:
        module = getattr(pipe, name)
        quantize(module, weights={"fp8": qfloat8, "int8": qint8, "int4": qint4}[kind])
        freeze(module)
    return pipe


def plain_unpack() -> None:
    """Unpack int4 in plain torch, as quanto's README defines it, where quanto would compile C++ at first use."""
    import optimum.quanto.library  # noqa: F401  (defines the operator)

    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])

    library = torch.library.Library("quanto", "IMPL")
    library.impl("unpack", unpack, "CPU", allow_override=True)
    LIBRARIES.append(library)


LIBRARIES: list[torch.library.Library] = []  # an override lasts as long as its library object


# ----------------------------------------------------------------------------------------------------------- scores


def share(flags: list[bool]) -> float:
    return 100 * sum(flags) / len(flags)


def score(pipe: object, options: argparse.Namespace, name: str) -> dict[str, float]:
    """Background, subject, size and place in percent, and the subjects that failed."""
    started = time.monotonic()
    items = prompts(options.pairs, BASE_LAYOUTS, seed=1)
    images = generate(pipe, [text for *_, text in items], options)
    seconds = (time.monotonic() - started) / len(items)
    placed = prompts(options.pairs // 3, tuple(PLACES), seed=2)
    placed_images = generate(pipe, [text for *_, text in placed], options, seed=10_000)
    order = sorted(range(len(items)), key=lambda i: items[i][1])  # one background after another: references are cached
    right, wrong = [False] * len(items), []
    for i in order:
        found = nearest_subject(options.work, images[i], nearest_colour(background(images[i])))
        right[i] = found == items[i][0]
        if not right[i]:
            wrong.append(f"{items[i][0]} as {found} ({items[i][3]})")
    result = {
        "background": share(
            [nearest_colour(background(im)) == c for im, (_, c, _, _) in zip(images, items, strict=True)]
        ),
        "subject": share(right),
        "size": share(
            [nearest_size(options.work, im, s, c) == size for im, (s, c, size, _) in zip(images, items, strict=True)]
        ),
        "place": share(
            [
                nearest_place(options.work, im, s, c) == size
                for im, (s, c, size, _) in zip(placed_images, placed, strict=True)
            ]
        ),
        "seconds": round(seconds, 3),
    }
    print(f"{name:6} " + "  ".join(f"{key} {value:.1f}" for key, value in result.items() if key != "seconds")
          + f"  {seconds:.2f} s a picture, {len(items)} pairs", flush=True)  # fmt: skip
    for line in wrong:
        print("       not recognised:", line)
    return result


def score_img2img(pipe: object, options: argparse.Namespace) -> dict[str, float]:
    """Repaint training pictures on another background: the colour must change, the subject stay as and where it is."""
    from diffusers import FluxImg2ImgPipeline

    repaint = FluxImg2ImgPipeline(**pipe.components)
    repaint.set_progress_bar_config(disable=True)
    rng = random.Random(3)
    items = [
        (s, *rng.sample(list(COLOURS), 2), rng.choice(LAYOUTS))
        for s in rng.choices(list(SUBJECTS), k=options.pairs // 3)
    ]
    sources = [reference(options.work, s, COLOURS[old], layout) for s, old, _, layout in items]
    size = {"medium": "", "big": "big "}
    texts = [
        f"a {size.get(at, 'small ')}{s} {train_demo.PLACE_PHRASES.get(at, '')} on a {new} background".replace("  ", " ")
        for s, _, new, at in items
    ]
    images = generate(repaint, texts, options, 20_000, image=sources, strength=options.strength, num_inference_steps=12)
    moved = [
        max(abs(a - b) for a, b in zip(box(im)[:2], box(src)[:2], strict=True))
        for im, src in zip(images, sources, strict=True)
    ]
    found = [nearest_subject(options.work, im, nearest_colour(background(im))) for im in images]
    result = {
        "background": share(
            [nearest_colour(background(im)) == new for im, (_, _, new, _) in zip(images, items, strict=True)]
        ),
        "subject": share([f == s for f, (s, *_) in zip(found, items, strict=True)]),
        "in place": share([m <= 6 for m in moved]),
    }
    print(
        "img2img " + "  ".join(f"{k} {v:.1f}" for k, v in result.items()) + f"  (strength {options.strength})",
        flush=True,
    )
    if options.sheets:
        save_sheet(
            [im for pair in zip(sources[:20], images[:20], strict=True) for im in pair],
            options.sheets / "img2img.png",
            10,
        )
    return result


def score_inpaint(pipe: object, options: argparse.Namespace) -> dict[str, float]:
    """Replace the subject inside a box: it must be the new one, and pixels 4 and more away from the mask the old ones.

    The pipeline decodes the whole picture, so what lies outside the mask is laid over it afterwards (apply_overlay).
    """
    from diffusers import FluxInpaintPipeline

    fill = FluxInpaintPipeline(**pipe.components)
    fill.set_progress_bar_config(disable=True)
    rng = random.Random(4)
    items = [(*rng.sample(list(SUBJECTS), 2), rng.choice(list(COLOURS))) for _ in range(options.pairs // 3)]
    sources = [reference(options.work, old, COLOURS[c], "medium") for old, _, c in items]
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(255, (8, 8, 120, 120))
    texts = [f"a {new} on a {c} background" for _, new, c in items]
    raw = generate(fill, texts, options, 30_000, image=sources, mask_image=[mask] * len(items), strength=1.0)
    images = [fill.image_processor.apply_overlay(mask, src, im) for src, im in zip(sources, raw, strict=True)]
    outside = np.ones((SIZE, SIZE), dtype=bool)
    outside[4:124, 4:124] = False
    changed = [
        np.abs(np.asarray(im, np.int16) - np.asarray(src, np.int16))[outside].max()
        for im, src in zip(images, sources, strict=True)
    ]
    result = {
        "subject": share(
            [nearest_subject(options.work, im, c) == new for im, (_, new, c) in zip(images, items, strict=True)]
        ),
        "largest change outside, grey levels": float(max(changed)),
    }
    print("inpaint " + "  ".join(f"{k} {v:.1f}" for k, v in result.items()), flush=True)
    if options.sheets:
        save_sheet(
            [im for pair in zip(sources[:20], images[:20], strict=True) for im in pair],
            options.sheets / "inpaint.png",
            10,
        )
    return result


def saturation(image: Image.Image) -> float:
    return float(np.asarray(image.convert("HSV"), dtype=np.float32)[..., 1].mean())


def darkness(image: Image.Image) -> float:
    return 255 - float(background(image).mean())


STYLE_MEASURES = {
    "pencil": ("colourfulness lost", lambda im: 255 - saturation(im)),
    "neon": ("darkness behind", darkness),
}


def score_loras(options: argparse.Namespace) -> dict[str, list[float]]:
    """The style measure at scales 0, 0.25 ... 1, which must rise; at 0 the bytes must be those of the plain model."""
    texts = [text for *_, text in prompts(24, BASE_LAYOUTS, seed=5)]
    pipe = load(options.folder)
    plain, result, rows = generate(pipe, texts, options, 40_000), {}, []
    for style, (what, measure) in STYLE_MEASURES.items():
        if not (options.folder / "lora" / f"{style}.safetensors").exists():
            continue
        pipe.load_lora_weights(options.folder / "lora", weight_name=f"{style}.safetensors", adapter_name=style)
        values = []
        for scale in (0.0, 0.25, 0.5, 0.75, 1.0):
            pipe.set_adapters(style, scale)
            images = generate(pipe, texts, options, 40_000)
            values.append(round(float(np.mean([measure(im) for im in images])), 1))
            rows.append(images[:12])
            if scale == 0:
                same = all(a.tobytes() == b.tobytes() for a, b in zip(images, plain, strict=True))
        pipe.unload_lora_weights()
        rising = values == sorted(set(values))
        print(
            f"lora {style}: {what} {values} at 0, .25, .5, .75, 1; rising {rising}; 0 equals the plain model {same}",
            flush=True,
        )
        result[style] = values
    if options.sheets and rows:
        save_sheet([im for row in rows for im in row], options.sheets / "lora.png", 12)
    return result


# ----------------------------------------------------------------------------------------------------------- sheets


def save_sheet(images: list[Image.Image], path: Path, columns: int, labels: list[str] | None = None) -> None:
    """A grid of pictures, each with its label below, as a PNG of at most 256 colours."""
    cell = SIZE + (18 if labels else 2)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (SIZE + 2), rows * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = i % columns * (SIZE + 2), i // columns * cell
        sheet.paste(image, (x + 1, y + 1))
        if labels:
            pen.text((x + SIZE / 2, y + SIZE + 9), labels[i], fill="black", anchor="mm", font_size=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def demo_sheet(pipe: object, options: argparse.Namespace) -> None:
    """Forty outputs of unseen pairs, not picked by looks: each subject at most once, sizes and places in turn."""
    rng = random.Random(11)
    pairs, items = sorted(train_demo.held_out()), []
    rng.shuffle(pairs)
    for subject, colour in pairs:
        if len(items) < 40 and subject not in {s for s, *_ in items}:
            items.append((subject, colour, ("medium", "medium", "small", "big", "medium", *PLACES)[len(items) % 9]))
    where = {"medium": "{s}", "big": "big {s}", "small": "small {s}"}
    where |= {place: "{s} " + phrase for place, phrase in train_demo.PLACE_PHRASES.items()}
    texts = [where[at].format(s=s) + ", " + c for s, c, at in items]
    save_sheet(generate(pipe, texts, options, 50_000), options.sheet, 8, texts)


def subject_sheet(pipe: object, options: argparse.Namespace) -> None:
    """Every subject once on an unseen colour, to judge by eye."""
    pairs = dict(sorted(train_demo.held_out()))
    texts = [f"{train_demo.article(s)} on a {pairs[s]} background" for s in SUBJECTS]
    save_sheet(generate(pipe, texts, options, 60_000), options.sheets / "subjects.png", 12, list(SUBJECTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("src/diffpipe/demo"))
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="where train_demo.py keeps the drawings")
    parser.add_argument(
        "--only", nargs="+", choices=["base", "fp8", "int8", "int4", "img2img", "inpaint", "lora", "none"]
    )
    parser.add_argument("--pairs", type=int, default=318)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=train_demo.GUIDANCE)
    parser.add_argument("--true-cfg", type=float, default=1.0, help="true_cfg_scale with an empty negative prompt")
    parser.add_argument("--length", type=int, default=32, help="max_sequence_length")
    parser.add_argument("--strength", type=float, default=0.8, help="of img2img")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of forty pictures here")
    parser.add_argument(
        "--sheets", type=Path, help="folder for sheets to judge by eye: every subject, img2img, inpaint, LoRAs"
    )
    parser.add_argument("--json", type=Path, help="write all scores here")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = options.only or ["base", "fp8", "int8", "int4", "img2img", "inpaint", "lora"]
    scores: dict[str, object] = {}
    pipe = load(options.folder)
    if options.sheet:
        demo_sheet(pipe, options)
    if options.sheets:
        subject_sheet(pipe, options)
    if "base" in wanted:
        scores["base"] = score(pipe, options, "base")
    for kind in ("fp8", "int8", "int4"):
        if kind in wanted:
            scores[kind] = score(quantized(options.folder, kind), options, kind)
    if "img2img" in wanted:
        scores["img2img"] = score_img2img(pipe, options)
    if "inpaint" in wanted:
        scores["inpaint"] = score_inpaint(pipe, options)
    if "lora" in wanted:
        scores["lora"] = score_loras(options)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
