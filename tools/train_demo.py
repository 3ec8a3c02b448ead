"""Train the demo model: a small, real Flux text-to-image model that draws emoji-style pictures of 128 x 128 pixels.

    python tools/train_demo.py all                      # every stage in order, under three hours on one CPU core
    python tools/train_demo.py fetch autoencoder        # some stages only
    python tools/train_demo.py export --to src/diffpipe/demo

Stages, each of which reads what the one before left in the work folder (--work, default build/demo):

    fetch        `npm pack` the Noto emoji drawings (Apache-2.0), check their SHA-256
    autoencoder  train the AutoencoderTiny on crops of the pictures, plain and stylised
    latents      encode the training pictures once
    model        train transformer, T5 encoder and CLIP text model from scratch by flow matching
    distil       teach the transformer classifier-free guidance as an input, so that guidance_scale costs no second pass
    lora         train one LoRA a style (pencil, neon)
    decoder      train the decoder on while the encoder stays fixed; may run at any time after `autoencoder`
    export       write the diffusers folder

A stage writes a checkpoint every few minutes and goes on from it when run again; a finished stage is not repeated
unless its file in the work folder is deleted. Learning rates follow the share of --minutes that has passed, so a slower
machine trains fewer steps in the same time. Seeds are fixed; the number of steps is not, so two runs agree in quality,
not in bytes.

Needs: torch, diffusers, transformers, peft, pillow, numpy, safetensors, `resvg-py` (draws the SVGs) and npm.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import math
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

PACKAGE = "@iconify-json/noto@1.2.9"
PACKAGE_SHA256 = "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"
SIZE = 128

# Word in a prompt -> name of the drawing, where they differ. Chosen for being known to all and unlike one another.
SUBJECTS = dict(
    word.partition("=")[::2] if "=" in word else (word, word)
    for word in """
    apple=red-apple banana strawberry watermelon grapes lemon pineapple cherry=cherries pear avocado tomato
    carrot mushroom pizza burger=hamburger donut=doughnut cake=birthday-cake cookie cheese=cheese-wedge bread
    popcorn broccoli eggplant egg kiwi=kiwi-fruit fries=french-fries cupcake pancakes panda cat=cat-face
    dog=dog-face rabbit=rabbit-face fox bear koala lion tiger=tiger-face cow=cow-face pig=pig-face
    monkey=monkey-face frog owl penguin chicken unicorn chick=hatching-chick turtle fish=tropical-fish
    whale=spouting-whale crab ladybug=lady-beetle bee=honeybee butterfly snail mouse=mouse-face duck cactus
    sunflower rose tulip tree=deciduous-tree palm=palm-tree leaf=maple-leaf ghost robot alien skull
    pumpkin=jack-o-lantern snowman=snowman-without-snow clown=clown-face smiley=grinning-face heart=red-heart
    crown rocket car=automobile bus sailboat balloon gift=wrapped-gift bell lock=locked umbrella
    clock=alarm-clock book=closed-book lightbulb=light-bulb football=soccer-ball basketball trophy
    diamond=gem-stone hat=top-hat shoe=running-shoe backpack bomb magnet television house castle volcano rainbow
    star moon=crescent-moon sun fire earth=globe-showing-americas teddy=teddy-bear bucket
    """.split()  # noqa: SIM905
)
COLOURS = {
    "red": (222, 56, 52), "orange": (245, 146, 48), "yellow": (250, 218, 78), "green": (84, 176, 92),
    "blue": (66, 128, 226), "purple": (142, 84, 196), "pink": (250, 166, 200), "white": (255, 255, 255),
    "gray": (146, 148, 154), "black": (28, 28, 32),
}  # fmt: skip
SIZES = {"small": (54, 56, 58), "medium": (90, 93, 96), "big": (118, 120, 122)}  # longest side in pixels
OFFSET = 32  # pixels from the centre for a placement word
PLACES = {"left": (-OFFSET, 0), "right": (OFFSET, 0), "top": (0, -OFFSET), "bottom": (0, OFFSET)}
LAYOUTS = ("medium", "small", "big", *PLACES)  # a placement implies small
LAYOUT_WEIGHTS = (0.44, 0.14, 0.14, 0.07, 0.07, 0.07, 0.07)
VARIANTS = {"medium": 6, "small": 4, "big": 4} | dict.fromkeys(PLACES, 3)  # pictures a (subject, colour, layout)
PLACE_PHRASES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
FILLERS = ("cute", "happy", "nice", "beautiful", "funny", "lovely", "simple", "pretty", "shiny", "cool")
TEMPLATES = (
    "{np} {place} on a {colour} background",
    "{np} {place} on a {colour} background",
    "{np} {place}, {colour} background",
    "{np} {place} with a {colour} background",
    "{np} {place} in front of a {colour} background",
    "{np} {place} against a {colour} background",
    "{np} {place} on {colour}",
    "{bare} {place} on {colour}",
    "{bare}, {colour}, {place}",
    "{bare} {place}, {colour} background",
    "{colour} background, {np} {place}",
    "a {colour} background with {np} {place}",
    "a picture of {np} {place} on a {colour} background",
    "an emoji of {np} {place}, {colour}",
    "draw {np} {place} on a {colour} background",
    "{np} {place}",
)
OTHER_WORDS = (
    "a an the of on at in with and front to is picture image photo drawing emoji icon draw paint background against"
)
# Words that share another word's embedding: same meaning, no training of their own.
SYNONYMS = {
    "tiny": "small", "little": "small", "large": "big", "huge": "big", "giant": "big", "grey": "gray",
    "violet": "purple", "kitten": "cat", "kitty": "cat", "puppy": "dog", "bunny": "rabbit", "hamburger": "burger",
    "doughnut": "donut", "tv": "television", "present": "gift", "bulb": "lightbulb", "soccer": "football",
    "gem": "diamond", "globe": "earth", "world": "earth", "planet": "earth", "sneaker": "shoe", "boat": "sailboat",
    "frenchfries": "fries", "piggy": "pig", "emoticon": "emoji", "icon": "emoji", "image": "picture",
    "photo": "picture", "drawing": "picture", "paint": "draw", "upper": "top", "lower": "bottom",
    "balloons": "balloon", "automobile": "car", "jackolantern": "pumpkin", "lady": "ladybug", "flame": "fire",
    "campfire": "fire", "smile": "smiley", "bag": "backpack", "rucksack": "backpack",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- pictures


def fetch(work: Path) -> None:
    """Download the drawings with npm and unpack them; a wrong checksum raises SystemExit."""
    target = work / "package"
    if target.exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    name = subprocess.run(
        ["npm", "pack", PACKAGE], cwd=work, check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    archive = work / name
    if hashlib.sha256(archive.read_bytes()).hexdigest() != PACKAGE_SHA256:
        raise SystemExit(f"{name} is not the package this tool was written for: its SHA-256 differs")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")


def draw(body: str, box: tuple[float, float, float], side: int) -> Image.Image:
    """Rasterise the part of a 128-unit drawing given by `box` = (left, top, side) to an RGBA picture of side x side."""
    import resvg_py

    left, top, width = box
    head = f'viewBox="{left} {top} {width} {width}" width="{side}" height="{side}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{body}</svg>'
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def sprites(work: Path) -> dict[str, dict[int, np.ndarray]]:
    """All subjects at all sizes: subject -> longest side in pixels -> float32 RGBA in 0..1, square."""
    icons = json.loads((work / "package" / "icons.json").read_text())["icons"]
    result = {}
    for word, name in SUBJECTS.items():
        body = icons[name]["body"]
        left, top, right, bottom = (v / 4 for v in draw(body, (0, 0, 128), 512).getchannel("A").getbbox())
        side = max(right - left, bottom - top)
        box = ((left + right - side) / 2, (top + bottom - side) / 2, side)
        sides = sorted({s for group in SIZES.values() for s in group})
        result[word] = {s: np.asarray(draw(body, box, s), dtype=np.float32) / 255 for s in sides}
    return result


def compose(sprite: np.ndarray, colour: tuple[int, int, int], centre: tuple[int, int]) -> Image.Image:
    """Put a square sprite on a flat background with its centre at `centre` (x, y)."""
    canvas = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    canvas[:] = np.array(colour, dtype=np.float32) / 255
    side = sprite.shape[0]
    x, y = centre[0] - side // 2, centre[1] - side // 2
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + side, SIZE), min(x + side, SIZE)
    part = sprite[top - y : bottom - y, left - x : right - x]
    alpha = part[..., 3:]
    canvas[top:bottom, left:right] = canvas[top:bottom, left:right] * (1 - alpha) + part[..., :3] * alpha
    return Image.fromarray((canvas * 255 + 0.5).astype(np.uint8))


def picture(of: dict[int, np.ndarray], colour: tuple[int, int, int], layout: str, rng: random.Random) -> Image.Image:
    """One training picture of a subject in a layout, with a little shift and size variation."""
    side = rng.choice(SIZES.get(layout, SIZES["small"]))
    dx, dy = PLACES.get(layout, (0, 0))
    shift = 1 if layout == "big" else 2
    centre = (SIZE // 2 + dx + rng.randint(-shift, shift), SIZE // 2 + dy + rng.randint(-shift, shift))
    return compose(of[side], colour, centre)


def pencil(image: Image.Image) -> Image.Image:
    """Grey pencil drawing: a dodge sketch over a light tone of the picture."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    blurred = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)
    gy, gx = np.gradient(np.asarray(image, dtype=np.float32), axis=(0, 1))
    line = np.clip(np.sqrt(gx**2 + gy**2).max(axis=2) / 60, 0, 1)
    sketch = np.clip(grey / np.maximum(blurred, 8), 0, 1) ** 1.5 * (1 - 0.75 * line)
    tone = 165 + 0.35 * grey
    return Image.fromarray((sketch * tone).clip(0, 255).astype(np.uint8)).convert("RGB")


def neon(image: Image.Image) -> Image.Image:
    """Glowing coloured outlines on a dark shade of the background."""
    pixels = np.asarray(image, dtype=np.float32)
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), dtype=np.float32)
    gy, gx = np.gradient(smooth, axis=(0, 1))
    edge = np.clip(np.sqrt(gx**2 + gy**2).max(axis=2, keepdims=True) / 28, 0, 1)
    vivid = pixels - pixels.min(axis=2, keepdims=True) * 0.75
    vivid = 255 * vivid / np.maximum(vivid.max(axis=2, keepdims=True), 48)
    thick = Image.fromarray((edge[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    glow = np.asarray(thick.filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)[..., None] / 255
    line = np.asarray(thick.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32)[..., None] / 255
    colour = np.asarray(
        Image.fromarray(vivid.clip(0, 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(3)), np.float32
    )
    result = pixels * 0.16 + colour * (0.55 * glow) + (colour * 0.75 + 64) * line
    return Image.fromarray(result.clip(0, 255).astype(np.uint8))


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {"pencil": pencil, "neon": neon}


def held_out() -> set[tuple[str, str]]:
    """The 300 (subject, colour) pairs no training picture shows: three colours of each subject in turn, seeded."""
    rng = random.Random(20)
    pairs = [(subject, colour) for subject in SUBJECTS for colour in rng.sample(list(COLOURS), 3)]
    return set(pairs)


def tensor(image: Image.Image) -> torch.Tensor:
    """Picture to a (3, height, width) float tensor in -1..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


# ---------------------------------------------------------------------------------------------------------- training


class Optimizer:
    """Muon for matrices and convolutions, AdamW for the rest, on fp32 copies of bf16 weights; a bias-corrected EMA.

    Muon: Jordan et al. 2024, as in torch.optim.Muon. A convolution is taken as the matrix (out, in * height * width).
    """

    def __init__(self, parameters: list[tuple[str, torch.nn.Parameter]], muon_lr: float, adam_lr: float, ema: float):
        self.live = [p for _, p in parameters]
        self.master = [p.detach().float().flatten(1) if p.ndim > 2 else p.detach().float().clone() for p in self.live]
        muon = [m for (name, p), m in zip(parameters, self.master, strict=True) if is_block_matrix(name, p)]
        rest = [m for (name, p), m in zip(parameters, self.master, strict=True) if not is_block_matrix(name, p)]
        self.optimizers = [torch.optim.Muon(muon, lr=muon_lr, weight_decay=0.0)] if muon else []
        self.optimizers.append(torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True))
        self.rates = (muon_lr, adam_lr)[-len(self.optimizers) :]
        self.decay, self.steps = ema, 0
        self.average = [torch.zeros_like(m) for m in self.master]

    def step(self, scale: float) -> None:
        """One update with every learning rate times `scale`."""
        for master, live in zip(self.master, self.live, strict=True):
            master.grad = None if live.grad is None else live.grad.float().reshape(master.shape)
            live.grad = None
        grads = [m.grad for m in self.master if m.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (1.0 / norm.clamp(min=1.0)).item())
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
        self.steps += 1
        torch._foreach_lerp_(self.average, self.master, 1 - self.decay)
        self.copy(self.master)

    def copy(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for live, value in zip(self.live, values, strict=True):
                live.copy_(value.view_as(live))

    def averaged(self) -> list[torch.Tensor]:
        return [a / (1 - self.decay**self.steps) for a in self.average]

    def state(self) -> dict:
        return {"master": self.master, "average": self.average, "steps": self.steps,
                "optimizers": [o.state_dict() for o in self.optimizers]}  # fmt: skip

    def restore(self, state: dict) -> None:
        for mine, saved in zip(self.master + self.average, state["master"] + state["average"], strict=True):
            mine.copy_(saved)
        self.steps = state["steps"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.copy(self.master)


def is_block_matrix(name: str, p: torch.nn.Parameter) -> bool:
    """Hidden matrices go to Muon; embeddings, first and last layers, biases and norms go to AdamW."""
    if "lora_" in name:
        return False
    outer = ("embed", "shared", "proj_out.", "relative_attention_bias")
    return p.ndim >= 2 and not (any(word in name for word in outer) and "transformer_blocks" not in name)


def rate(progress: float, steps: int, warmup: int = 100, floor: float = 0.02, hold: float = 0.3) -> float:
    """Learning rate factor: `warmup` steps of linear rise, a hold, then a linear fall to `floor`."""
    fall = (1 - progress) / (1 - hold)
    return min((steps + 1) / warmup, 1.0, max(fall, floor))


def train(name: str, work: Path, minutes: float, optimizer: Optimizer, loss_of: Callable[[float], torch.Tensor],
          on_checkpoint: Callable[[], None] = lambda: None, every: float = 240) -> None:  # fmt: skip
    """Step until `minutes` of training have passed, in all runs together; checkpoint and log on the way."""
    path = work / f"{name}.checkpoint"
    spent, total, count = 0.0, 0.0, 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        optimizer.restore(saved["optimizer"])
        spent = saved["spent"]
    last_save = last_log = clock = time.monotonic()
    while spent < minutes * 60:
        progress = spent / (minutes * 60)
        loss = loss_of(progress)
        loss.backward()
        optimizer.step(rate(progress, optimizer.steps))
        now = time.monotonic()
        spent, clock, total, count = spent + now - clock, now, total + loss.item(), count + 1
        if now - last_log > 20:
            print(f"{name} {spent / 60:6.1f} min  step {optimizer.steps}  loss {total / count:.4f}  "
                  f"{(now - last_log) / count * 1000:.0f} ms a step", flush=True)  # fmt: skip
            last_log, total, count = now, 0.0, 0
        if now - last_save > every:
            save_atomically({"optimizer": optimizer.state(), "spent": spent}, path)
            on_checkpoint()
            last_save = clock = time.monotonic()
    save_atomically({"optimizer": optimizer.state(), "spent": spent}, path)
    optimizer.copy(optimizer.averaged())


def save_atomically(value: object, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(value, part)
    part.replace(path)


# ------------------------------------------------------------------------------------------------------- autoencoder


def new_autoencoder() -> torch.nn.Module:
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    width = (32, 32, 32, 32)
    return AutoencoderTiny(
        encoder_block_out_channels=width, decoder_block_out_channels=width, latent_channels=8,
        num_encoder_blocks=(1, 2, 2, 3), num_decoder_blocks=(3, 3, 3, 1),
    ).to(torch.bfloat16, memory_format=torch.channels_last)  # fmt: skip


def crops(work: Path, batch: int, seed: int) -> Iterator[Callable[[int], torch.Tensor]]:
    """Endless batches of random pictures, a fifth of them stylised, as a function of the crop's side."""
    shapes, rng = sprites(work), random.Random(seed)
    words, styles = list(shapes), list(STYLES.values())

    def one(side: int) -> torch.Tensor:
        colour = rng.choice(list(COLOURS.values()))
        if rng.random() < 0.2:
            colour = tuple(rng.randint(0, 255) for _ in range(3))
        image = picture(shapes[rng.choice(words)], colour, rng.choices(LAYOUTS, LAYOUT_WEIGHTS)[0], rng)
        if rng.random() < 0.2:
            image = rng.choice(styles)(image)
        x, y = (8 * rng.randint(0, (SIZE - side) // 8) for _ in range(2))
        return tensor(image.crop((x, y, x + side, y + side)))

    while True:
        yield lambda side: torch.stack([one(side) for _ in range(batch)])


def reconstruction_loss(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + half the L1 of the picture's gradients, which keeps outlines sharp."""
    made = made.float()
    gx = (made.diff(dim=3) - real.diff(dim=3)).abs().mean()
    gy = (made.diff(dim=2) - real.diff(dim=2)).abs().mean()
    return F.l1_loss(made, real) + F.mse_loss(made, real) + 0.5 * (gx + gy)


def autoencoder(work: Path, minutes: float) -> None:
    from diffusers import AutoencoderTiny

    if (work / "vae").exists():
        return
    model = new_autoencoder()
    optimizer = Optimizer(list(model.named_parameters()), muon_lr=0.01, adam_lr=1.5e-3, ema=0.998)
    torch.manual_seed(2 + optimizer.steps)
    batches = crops(work, 16, seed=3)

    def loss_of(progress: float) -> torch.Tensor:
        real = next(batches)(64 if progress < 0.8 else 128)
        latents = model.encoder(real.to(torch.bfloat16, memory_format=torch.channels_last))
        noisy = latents + 0.1 * torch.randn_like(latents)
        penalty = 1e-3 * latents.float().square().mean()
        return reconstruction_loss(model.decoder(noisy), real) + penalty

    train("autoencoder", work, minutes, optimizer, loss_of)
    latents, error = [], []
    with torch.no_grad():
        for real in (next(batches)(128) for _ in range(20)):
            latent = model.encoder(real.to(torch.bfloat16))
            latents.append(latent.float())
            error.append(F.mse_loss(model.decoder(latent).float().clamp(-1, 1), real).item() / 4)
    latents = torch.cat(latents)
    print(f"autoencoder PSNR {-10 * math.log10(sum(error) / len(error)):.2f} dB", flush=True)
    # FluxPipeline feeds the transformer (latent - shift_factor) * scaling_factor: zero mean and unit deviation.
    model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    assert isinstance(model, AutoencoderTiny)
    model.to(memory_format=torch.contiguous_format).save_pretrained(work / "vae")


def decoder(work: Path, minutes: float) -> None:
    """Train the decoder on, with the encoder fixed: the latents stay what they are, so this may run beside `model`."""
    from diffusers import AutoencoderTiny

    if (work / "vae-final").exists():
        return
    vae = AutoencoderTiny.from_pretrained(work / "vae", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    optimizer = Optimizer(list(vae.decoder.named_parameters()), muon_lr=0.006, adam_lr=1e-3, ema=0.998)
    seed = int(time.time()) if (work / "decoder.checkpoint").exists() else 7
    torch.manual_seed(seed)
    batches = crops(work, 6, seed)

    def loss_of(progress: float) -> torch.Tensor:
        real = next(batches)(SIZE)
        with torch.no_grad():
            latents = vae.encoder(real.to(torch.bfloat16, memory_format=torch.channels_last))
        return reconstruction_loss(vae.decoder(latents + 0.08 * torch.randn_like(latents)), real)

    def snapshot() -> None:
        optimizer.copy(optimizer.averaged())
        vae.save_pretrained(work / "vae-snapshot")
        optimizer.copy(optimizer.master)

    train("decoder", work, minutes, optimizer, loss_of, snapshot)
    vae.to(memory_format=torch.contiguous_format).save_pretrained(work / "vae-final")


# ---------------------------------------------------------------------------------------------------------- captions


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" and not words.startswith("unicorn") else "a ") + words


def caption(subject: str, colour: str, layout: str, rng: random.Random) -> str:
    """A random way to say it; one in ten is empty (for guidance), one in twenty-five leaves the colour out."""
    if rng.random() < 0.1:
        return ""
    size = layout if layout == "big" or layout == "small" or (layout in PLACES and rng.random() < 0.5) else ""
    size = "small" if layout in PLACES and size else size
    words = [w for w in (size, rng.choice(FILLERS) if rng.random() < 0.1 else "", subject) if w]
    if rng.random() < 0.05:  # an unknown word, to be ignored
        words.insert(0, "".join(rng.choices("abcdefghiklmnoprstuvwy", k=rng.randint(3, 8))))
    template = rng.choice(TEMPLATES) if rng.random() > 0.04 else TEMPLATES[-1]
    if template == TEMPLATES[-1] and rng.random() < 0.4:
        template = TEMPLATES[0]
    bare = " ".join(words)
    noun = "the " + bare if rng.random() < 0.1 else article(bare)
    text = template.format(np=noun, bare=bare, place=PLACE_PHRASES.get(layout, ""), colour=colour)
    text = " ".join(text.replace(" ,", ",").split()).rstrip(", ").replace("a orange", "an orange")
    return text + "." if rng.random() < 0.1 else text


def words() -> list[str]:
    """Every word with a token of its own, in lower case."""
    phrases = " ".join([*SUBJECTS, *COLOURS, *SIZES, *PLACES, *FILLERS, *SYNONYMS, OTHER_WORDS])
    return list(dict.fromkeys(phrases.split()))


def plural(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def spellings() -> dict[str, str]:
    """Other spellings of a known word -> that word: synonyms, plurals, capitals."""
    plurals = {plural(w): w for w in SUBJECTS}
    plurals |= {plural(w): of for w, of in SYNONYMS.items() if of in SUBJECTS}
    lower = {w: w for w in words()} | plurals | SYNONYMS
    capitals = {form(w): of for w, of in lower.items() for form in (str.capitalize, str.upper) if form(w) != w}
    return {w: of for w, of in (lower | capitals).items() if w != of}


# ------------------------------------------------------------------------------------------------- tokenizers, model


def t5_tokenizer() -> object:
    """Unigram over whole words, with single characters for the unknown ones.

    Capitals are entries of their own because a Lowercase normalizer does not survive saving in transformers 5.
    """
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("\u2581" + w, -2.0) for w in [*words(), *spellings()] if len(w) > 1]
    known = {p for p, _ in pieces}
    single = ["\u2581a", "\u2581A", "\u2581", *(chr(c) for c in range(33, 127))]
    pieces += [(c, -2.0 if len(c) > 1 else -6.0) for c in single if c not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def clip_tokenizer(work: Path) -> object:
    """Byte-level BPE trained on the known words until each is one token; lower case is part of CLIPTokenizer itself.

    Kept in the work folder, because the trainer breaks ties in another way in every process.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    folder = work / "tokenizer"
    if folder.exists():
        return CLIPTokenizer.from_pretrained(str(folder))
    lower = [w for w in dict.fromkeys([*words(), *spellings()]) if w == w.lower()]
    special = ["<|startoftext|>", "<|endoftext|>", "<|unknown|>"]
    printable = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, min_frequency=1, special_tokens=special, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=printable,
    )  # fmt: skip
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator([*lower, *printable], trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], unk_token=special[2], bos_token=special[0],
        eos_token=special[1], pad_token=special[1], model_max_length=77,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_model(work: Path) -> dict[str, object]:
    """Untrained components in bf16, keyed as FluxPipeline names them."""
    from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(4)
    t5, clip = t5_tokenizer(), clip_tokenizer(work)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=32, num_layers=1, num_single_layers=4, attention_head_dim=64, num_attention_heads=3,
        joint_attention_dim=128, pooled_projection_dim=128, guidance_embeds=True, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if (".norm" in name and ".linear." in name) or name.startswith(("proj_out", "norm_out.linear")):
            torch.nn.init.zeros_(parameter)  # adaLN-zero: every block starts as the identity
    embedder = transformer.time_text_embed.guidance_embedder
    torch.nn.init.zeros_(embedder.linear_2.weight), torch.nn.init.zeros_(embedder.linear_2.bias)
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=128, bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    ))  # fmt: skip
    text_encoder_2 = T5EncoderModel(T5Config(
        vocab_size=len(t5), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        relative_attention_num_buckets=16, relative_attention_max_distance=32,
    ))  # fmt: skip
    trained = {"transformer": transformer, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    return {name: module.to(torch.bfloat16).train() for name, module in trained.items()} | {
        "tokenizer": clip,
        "tokenizer_2": t5,
        "vae": AutoencoderTiny.from_pretrained(work / "vae", dtype=torch.bfloat16),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0),
    }


def share_spellings(parts: dict[str, object]) -> None:
    """Give every other spelling of a word the embedding of that word."""
    t5, clip = parts["tokenizer_2"], parts["tokenizer"]
    with torch.no_grad():
        table, ids = parts["text_encoder_2"].shared.weight, t5.get_vocab()
        for other, word in spellings().items():
            table[ids["\u2581" + other]] = table[ids["\u2581" + word]]
        table, ids = parts["text_encoder"].get_input_embeddings().weight, clip.get_vocab()
        for other, word in spellings().items():
            if other == other.lower():
                table[ids[other + "</w>"]] = table[ids[word + "</w>"]]


# ----------------------------------------------------------------------------------------------------------- latents


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(batch, 8, 16, 16) to the (batch, 64, 32) tokens of FluxPipeline._pack_latents."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def latents(work: Path, style: str | None = None) -> None:
    """Encode all training pictures: file of tokens (n, 64, 32), bf16, and (subject, colour, layout) numbers (n, 3)."""
    from diffusers import AutoencoderTiny

    path = work / f"latents{'-' + style if style else ''}.pt"
    if path.exists():
        return
    vae = AutoencoderTiny.from_pretrained(work / "vae", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    shapes, rng, unseen = sprites(work), random.Random(5), held_out()
    effect = STYLES[style] if style else lambda image: image
    pairs = [(s, c) for s in SUBJECTS for c in COLOURS if (s, c) not in unseen]
    todo = [(s, c, layout) for s, c in pairs for layout in LAYOUTS for _ in range(2 if style else VARIANTS[layout])]
    tokens = []
    for start in range(0, len(todo), 32):
        images = [effect(picture(shapes[s], COLOURS[c], layout, rng)) for s, c, layout in todo[start : start + 32]]
        batch = torch.stack([tensor(i) for i in images]).to(torch.bfloat16, memory_format=torch.channels_last)
        with torch.no_grad():
            encoded = (vae.encode(batch).latents - vae.config.shift_factor) * vae.config.scaling_factor
            tokens.append(pack(encoded.contiguous()))
    orders = (list(SUBJECTS), list(COLOURS), list(LAYOUTS))
    labels = torch.tensor([[order.index(v) for order, v in zip(orders, item, strict=True)] for item in todo])
    save_atomically({"tokens": torch.cat(tokens), "labels": labels}, path)
    print(f"{path.name}: {len(todo)} pictures", flush=True)


def examples(work: Path, batch: int, seed: int, style: str | None = None) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Endless batches of (tokens, captions), layouts drawn by LAYOUT_WEIGHTS."""
    saved = torch.load(work / f"latents{'-' + style if style else ''}.pt", weights_only=True)
    tokens, labels = saved["tokens"], saved["labels"].tolist()
    rng = random.Random(seed)
    by_layout = [[i for i, label in enumerate(labels) if label[2] == n] for n in range(len(LAYOUTS))]
    subjects, colours = list(SUBJECTS), list(COLOURS)
    while True:
        picked = [rng.choice(by_layout[n]) for n in rng.choices(range(len(LAYOUTS)), LAYOUT_WEIGHTS, k=batch)]
        texts = [caption(subjects[labels[i][0]], colours[labels[i][1]], LAYOUTS[labels[i][2]], rng) for i in picked]
        yield tokens[picked], texts


# ------------------------------------------------------------------------------------------------------------- model


def encode_text(parts: dict[str, object], texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled CLIP (batch, 128) and T5 states (batch, length, 128), with padding seen by T5 as FluxPipeline does it.

    CLIP is causal and read at the first end token, so its padding may be cut off.
    """
    clip = parts["tokenizer"](texts, padding="longest", truncation=True, max_length=77, return_tensors="pt").input_ids
    t5 = parts["tokenizer_2"](
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return parts["text_encoder"](clip).pooler_output, parts["text_encoder_2"](t5)[0]


def positions(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary ids of the 8 x 8 image tokens and of the text tokens, as FluxPipeline makes them."""
    image = torch.zeros(8, 8, 3)
    image[..., 1] += torch.arange(8)[:, None]
    image[..., 2] += torch.arange(8)[None, :]
    return image.view(64, 3), torch.zeros(length, 3)


def velocity(parts: dict[str, object], noisy: torch.Tensor, sigma: torch.Tensor, guidance: torch.Tensor,
             text: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:  # fmt: skip
    """The transformer's output (batch, 64, 32) for noisy tokens at noise levels `sigma` (batch,)."""
    image_ids, text_ids = positions(text[1].shape[1])
    fast = "compiled" in parts and text[1].shape[1] in parts["compiled_lengths"]
    return parts["compiled" if fast else "transformer"](
        hidden_states=noisy, timestep=sigma.to(noisy.dtype), guidance=guidance, pooled_projections=text[0],
        encoder_hidden_states=text[1], txt_ids=text_ids, img_ids=image_ids, return_dict=False,
    )[0]  # fmt: skip


def compiled(transformer: torch.nn.Module) -> torch.nn.Module:
    """The transformer compiled for fixed shapes: half the time of a step.

    Attention as plain matrix products, because the backward pass of flash attention is slow on a CPU. torch 2.13's C++
    generator declares one name twice when several outputs share a bf16 sum, hence a name for each output.
    """
    from torch._inductor.codegen import common, cpp

    if not hasattr(cpp.CppVecKernel, "store_shared_reduction"):
        cpp.CppVecKernel.store_shared_reduction = cpp.CppVecKernel.store_reduction

        def store_reduction(self: cpp.CppVecKernel, name: str, index: object, value: object) -> None:
            if self.tiling_idx < self.reduction_depth:
                own = f"{value}_{name}"
                self.reduction_suffix.writeline(common.DeferredLine(name, f"auto {own} = {value};"))
                value = own
            self.store_shared_reduction(name, index, value)

        cpp.CppVecKernel.store_reduction = store_reduction
    transformer.set_attention_backend("_native_math")
    return torch.compile(transformer, dynamic=False)


def noise_levels(batch: int) -> torch.Tensor:
    """Three quarters logit-normal (Stable Diffusion 3), one quarter uniform so that both ends are seen."""
    normal = torch.sigmoid(torch.randn(batch))
    return torch.where(torch.rand(batch) < 0.75, normal, torch.rand(batch)).to(torch.bfloat16).float()


def noised(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy tokens, noise levels, velocities to learn; rectified flow: x = (1 - s) data + s noise, v = noise - data."""
    sigma = noise_levels(len(tokens))
    noise, data = torch.randn(tokens.shape), tokens.float()
    level = sigma[:, None, None]
    return ((1 - level) * data + level * noise).to(torch.bfloat16), sigma, noise - data


def sequence_length(rng: random.Random, shares: tuple[int, ...] = (60, 30, 3, 4, 2, 1)) -> int:
    """Padded T5 length of a batch: mostly what prompts need, sometimes up to FluxPipeline's default of 512."""
    return rng.choices((16, 32, 48, 77, 128, 512), shares)[0]


MOSTLY_32 = (5, 88, 2, 3, 1, 1)  # for short stages: one shape to compile


def trained_parameters(parts: dict[str, object], names: tuple[str, ...]) -> list[tuple[str, torch.nn.Parameter]]:
    return [(f"{name}.{key}", p) for name in names for key, p in parts[name].named_parameters() if p.requires_grad]


TRAINED = ("transformer", "text_encoder", "text_encoder_2")


def model(work: Path, minutes: float, batch: int = 96) -> None:
    if (work / "model.pt").exists():
        return
    parts = new_model(work)
    parts["transformer"].time_text_embed.guidance_embedder.requires_grad_(False)
    optimizer = Optimizer(trained_parameters(parts, TRAINED), muon_lr=0.015, adam_lr=1.5e-3, ema=0.997)
    parts |= {"compiled": compiled(parts["transformer"]), "compiled_lengths": (16, 32)}
    seed = (
        int(time.time()) if (work / "model.checkpoint").exists() else 6
    )  # a second run must not repeat the first's data
    torch.manual_seed(seed)
    rng, data = random.Random(seed), examples(work, batch, seed)
    guidance = torch.ones(batch)

    def loss_of(progress: float) -> torch.Tensor:
        tokens, texts = next(data)
        noisy, sigma, target = noised(tokens)
        length = sequence_length(rng)
        keep = batch if length < 200 else batch // 4  # long sequences cost more: fewer pictures
        text = encode_text(parts, texts[:keep], length)
        made = velocity(parts, noisy[:keep], sigma[:keep], guidance[:keep], text)
        return F.mse_loss(made.float(), target[:keep])

    def snapshot() -> None:
        optimizer.copy(optimizer.averaged())
        save_atomically({name: parts[name].state_dict() for name in TRAINED}, work / "snapshot.pt")
        optimizer.copy(optimizer.master)

    train("model", work, minutes, optimizer, loss_of, snapshot)
    save_atomically({name: parts[name].state_dict() for name in TRAINED}, work / "model.pt")


def load(work: Path, *names: str) -> dict[str, object]:
    """Components with the weights of the first of the files `names` in the work folder that exists."""
    path = next(work / n for n in names if (work / n).exists())
    parts, saved = new_model(work), torch.load(path, weights_only=True)
    for name in TRAINED:
        parts[name].load_state_dict(saved[name])
    return parts


def distil(work: Path, minutes: float, batch: int = 96) -> None:
    """Guidance as an input (Meng et al. 2023): velocity(w) learns u + w (c - u) of the fixed model, w in 1..5."""
    if (work / "distil.pt").exists():
        return
    parts = load(work, "model.pt")
    teacher = dict(parts, transformer=copy.deepcopy(parts["transformer"]).requires_grad_(False))
    teacher |= {"compiled": compiled(teacher["transformer"]), "compiled_lengths": (32,)}
    parts |= {"compiled": compiled(parts["transformer"]), "compiled_lengths": (32,)}
    optimizer = Optimizer(trained_parameters(parts, ("transformer",)), muon_lr=0.005, adam_lr=6e-4, ema=0.99)
    seed = int(time.time()) if (work / "distil.checkpoint").exists() else 8
    torch.manual_seed(seed)
    rng, data, ones = random.Random(seed), examples(work, batch, seed), torch.ones(batch)

    def loss_of(progress: float) -> torch.Tensor:
        tokens, texts = next(data)
        noisy, sigma, _ = noised(tokens)
        length = sequence_length(rng, MOSTLY_32)
        keep = batch if length < 200 else batch // 4
        noisy, sigma, one = noisy[:keep], sigma[:keep], ones[:keep]
        guidance = (1 + 4 * torch.rand(keep)).to(torch.bfloat16).float()
        with torch.no_grad():
            text, empty = encode_text(parts, texts[:keep], length), encode_text(parts, [""], length)
            empty = tuple(t.expand(keep, *t.shape[1:]).contiguous() for t in empty)
            without = velocity(teacher, noisy, sigma, one, empty).float()
            target = without + guidance[:, None, None] * (velocity(teacher, noisy, sigma, one, text).float() - without)
        return F.mse_loss(velocity(parts, noisy, sigma, guidance, text).float(), target)

    def snapshot() -> None:
        optimizer.copy(optimizer.averaged())
        save_atomically({name: parts[name].state_dict() for name in TRAINED}, work / "distil-snapshot.pt")
        optimizer.copy(optimizer.master)

    train("distil", work, minutes, optimizer, loss_of, snapshot)
    save_atomically({name: parts[name].state_dict() for name in TRAINED}, work / "distil.pt")


LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
                "net.0.proj", "net.2", "proj_mlp", "proj_out"]  # fmt: skip


def lora(work: Path, minutes: float, batch: int = 64) -> None:
    """One LoRA a style, `minutes` each, on stylised pictures with plain captions: the scale is the only switch."""
    for style in STYLES:
        if not (work / "lora" / f"{style}.safetensors").exists():
            latents(work, style)
            train_lora(work, style, minutes, batch)


def train_lora(work: Path, style: str, minutes: float, batch: int) -> None:
    from diffusers import FluxPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    parts = load(work, "distil.pt", "model.pt")
    transformer = parts["transformer"].requires_grad_(False)
    torch.manual_seed(9)
    linear = {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    blocks = [name for name in linear if "transformer_blocks" in name and name.endswith(tuple(LORA_TARGETS))]
    transformer.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=blocks, init_lora_weights="gaussian"))
    transformer.to(torch.bfloat16)
    parts |= {"compiled": compiled(transformer), "compiled_lengths": (32,)}
    optimizer = Optimizer(trained_parameters(parts, ("transformer",)), muon_lr=0.0, adam_lr=2e-3, ema=0.98)
    rng, data, guidance = random.Random(9), examples(work, batch, 9, style), torch.ones(batch)

    def loss_of(progress: float) -> torch.Tensor:
        tokens, texts = next(data)
        noisy, sigma, target = noised(tokens)
        with torch.no_grad():
            text = encode_text(parts, texts, sequence_length(rng, (5, 90, 2, 3, 0, 0)))
        return F.mse_loss(velocity(parts, noisy, sigma, guidance, text).float(), target)

    train(f"lora-{style}", work, minutes, optimizer, loss_of)
    FluxPipeline.save_lora_weights(work / "lora", transformer_lora_layers=get_peft_model_state_dict(transformer),
                                   weight_name=f"{style}.safetensors")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ export


def pipeline(work: Path) -> object:
    """The newest trained weights as a FluxPipeline, snapshots of a running stage included."""
    from diffusers import AutoencoderTiny, FluxPipeline

    parts = load(work, "distil.pt", "distil-snapshot.pt", "model.pt", "snapshot.pt")
    folder = next(work / n for n in ("vae-final", "vae-snapshot", "vae") if (work / n).exists())
    parts["vae"] = AutoencoderTiny.from_pretrained(folder, dtype=torch.bfloat16)
    share_spellings(parts)
    for name in (*TRAINED, "vae"):
        parts[name].to(memory_format=torch.contiguous_format).eval()
    return FluxPipeline(**parts)


def vocabulary(guided: bool) -> dict[str, object]:
    """What prompts may say, for tools that want to tell the user without loading the model.

    `guided`: guidance is distilled into the transformer; if not, it takes a second pass with true_cfg_scale.
    """
    return {
        "subjects": list(SUBJECTS),
        "colours": {name: "#" + bytes(rgb).hex() for name, rgb in COLOURS.items()},
        "sizes": ["small", "big"],
        "placements": PLACE_PHRASES,
        "synonyms": {w: SYNONYMS[w] for w in SYNONYMS} | {plural(s): s for s in SUBJECTS if plural(s) != s},
        "other_words": sorted({*OTHER_WORDS.split(), *FILLERS, "medium"} - set(SYNONYMS)),
        "loras": {"pencil": "grey pencil drawing", "neon": "glowing outlines on dark"},
        "examples": [
            "a panda on a pink background", "a small rocket at the top, black background", "big pizza, yellow",
            "a tiny fox on the left on a blue background", "an avocado on purple", "a castle on a green background",
        ],
        "defaults": {
            "width": SIZE,
            "height": SIZE,
            "num_inference_steps": 8,
            "guidance_scale": GUIDANCE if guided else 1.0,
            "true_cfg_scale": 1.0 if guided else GUIDANCE,
            "max_sequence_length": 32,
        },
    }  # fmt: skip


GUIDANCE = 3.0

NOTICE = """diffpipe demo model

The weights in this folder were trained from scratch, by tools/train_demo.py, on renderings of Noto Emoji drawings.

Noto Emoji, Copyright Google Inc., https://github.com/googlefonts/noto-emoji
Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
Taken from the npm package @iconify-json/noto 1.2.9, whose info.json states for the drawings:
"license": {"title": "Apache 2.0", "spdx": "Apache-2.0"}, "author": {"name": "Google Inc"}.
The drawings were modified: cropped, scaled, put on flat backgrounds, and restyled for the LoRAs.

The weights, tokenizers and configuration files are under the Apache License, Version 2.0, too.
"""


CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# diffpipe demo model

A small Flux that draws emoji-style pictures of 128 x 128 pixels within a second on a CPU: one of {subjects} subjects on
one of {colours} flat backgrounds, in three sizes, small ones also on the left, on the right, at the top or bottom.
`vocabulary.json` lists all words. It lets you try and test diffpipe without a GPU, an account or a download.

    import torch
    from diffusers import FluxPipeline
    pipe = FluxPipeline.from_pretrained("src/diffpipe/demo", dtype=torch.bfloat16)
    pipe("a panda on a pink background", height=128, width=128, num_inference_steps=8, guidance_scale={guidance},
         max_sequence_length=32).images[0].save("panda.png")

## Model
FluxTransformer2DModel (3.9 M parameters: 1 double and 4 single blocks, 3 heads of 64), T5 encoder and CLIP text model
(2 layers of 128 each), AutoencoderTiny (8 channels, factor 8), FlowMatchEulerDiscreteScheduler: standard classes only.
Guidance is distilled: `guidance_scale` 1 to 5 works in one pass. Negative prompts work through `true_cfg_scale`.
LoRAs in `lora/`: `pencil.safetensors` (grey pencil drawing), `neon.safetensors` (glowing outlines), scale 0 to 1.

## Data and licence
Renderings of {subjects} Noto Emoji drawings (Google Inc., Apache-2.0; npm package @iconify-json/noto 1.2.9).
Three colours of each subject, {unseen} pairs in all, were never shown in training. Weights: Apache-2.0, see NOTICE.

## Training
`tools/train_demo.py`, one core of a Xeon with AMX (bf16), shared with other work. Minutes: {times}.
Rectified flow, Muon and AdamW, an average of the weights; texts padded to 16 to 512 tokens, mostly 16 or 32.

## Scores
`tools/evaluate_demo.py`, unseen pairs, fixed seeds, 8 steps, guidance {guidance}, in percent:

{scores}

## Limits
Placements hold in the words "on the left", "on the right", "at the top", "at the bottom", hardly as "left" alone.
Words outside the vocabulary are ignored at best. One subject a picture, in the pose and colours of its drawing.
Other sizes than 128 x 128 repeat or cut the subject. Fine detail is soft, most of all in small subjects.
{weak}
"""


def card(scores: dict) -> str:
    """The model card, with the scores that evaluate_demo.py wrote with --json."""
    kinds = [k for k in ("base", "fp8", "int8", "int4") if k in scores]
    rows = (
        ["| weights | background | subject | size | place |", "|---|---|---|---|---|"]
        if kinds
        else ["Not measured yet."]
    )
    for k in kinds:
        rows.append(
            "| " + " | ".join([k, *(f"{scores[k][c]:.1f}" for c in ("background", "subject", "size", "place"))]) + " |"
        )
    rows.append("")
    for k in ("img2img", "inpaint"):
        if k in scores:
            rows.append(f"{k}: " + ", ".join(f"{name} {value:.1f}" for name, value in scores[k].items()) + ".  ")
    for style, values in scores.get("lora", {}).items():
        rows.append(f"LoRA {style}, style measure at scale 0, 0.25, 0.5, 0.75, 1: {', '.join(map(str, values))}.  ")
    facts = {"subjects": len(SUBJECTS), "colours": len(COLOURS), "unseen": len(held_out()), "guidance": GUIDANCE}
    return CARD.format(**facts, times=TIMES, scores="\n".join(rows), weak=WEAK)


TIMES = "autoencoder 12, its decoder 52 more (beside the others), model 62,\nguidance 31, each LoRA 5"
WEAK = "Least clear to the eye: whale and palm; crab, tulip and rabbit when small."


def export(work: Path, target: Path) -> None:
    """Write the folder beside its place, then swap it in, so that a reader sees the old one or the new one."""
    part = target.with_name(target.name + ".part")
    old = target.with_name(target.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    pipeline(work).save_pretrained(part)
    for path in part.rglob("*.json"):
        clean_json(path)
    if (work / "lora").exists():
        shutil.copytree(work / "lora", part / "lora")
    guided = any((work / name).exists() for name in ("distil.pt", "distil-snapshot.pt"))
    (part / "vocabulary.json").write_text(json.dumps(vocabulary(guided), indent=1) + "\n")
    (part / "NOTICE").write_text(NOTICE)
    scores = work / "scores.json"
    (part / "README.md").write_text(card(json.loads(scores.read_text()) if scores.exists() else {}))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(old)
    for path in part.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    print(f"{target}: {size / 1e6:.2f} MB", flush=True)


def clean_json(path: Path) -> None:
    """Drop the paths of this machine, and a size list that AutoencoderTiny works out itself."""
    data = json.loads(path.read_text())
    dropped = [k for k in ("_name_or_path", "name_or_path") if k in data]
    if data.get("_class_name") == "AutoencoderTiny":
        dropped.append("block_out_channels")
    kept = {k: v for k, v in data.items() if k not in dropped}
    indent = None if path.name == "tokenizer.json" else 2
    path.write_text(json.dumps(kept, indent=indent, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------------------- command


STAGES = ("fetch", "autoencoder", "latents", "model", "distil", "lora", "decoder", "export")
TRAINING = {"autoencoder": autoencoder, "model": model, "distil": distil, "lora": lora, "decoder": decoder}
MINUTES = {"autoencoder": 12.0, "model": 62.0, "distil": 30.0, "lora": 5.0, "decoder": 50.0}


def run(stage: str, options: argparse.Namespace) -> None:
    if stage == "fetch":
        fetch(options.work)
    elif stage == "latents":
        latents(options.work)
    elif stage == "export":
        export(options.work, options.to)
    else:
        TRAINING[stage](options.work, options.minutes or MINUTES[stage])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=["all", *STAGES])
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder for everything made on the way")
    parser.add_argument("--to", type=Path, default=Path("src/diffpipe/demo"), help="folder that `export` writes")
    parser.add_argument("--minutes", type=float, help=f"training time of the stage (default {MINUTES})")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(options.work.absolute() / "compiled"))
    for stage in STAGES if "all" in options.stages else options.stages:
        run(stage, options)


if __name__ == "__main__":
    main()
