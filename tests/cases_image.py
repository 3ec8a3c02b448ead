"""What every type of a family that makes pictures must make: see cases.py."""

from __future__ import annotations

from cases import Case

PROMPT = ("--prompt", "a cat and a frog")
TWO_STEPS = (*PROMPT, "--num-inference-steps", "2")
# Half of the steps are done at a strength of 0.5.
FOUR_STEPS = (*PROMPT, "--num-inference-steps", "4", "--strength", "0.5")
SIZE = ("--width", "64", "--height", "48")
PHOTO = ("--image", "{inputs}/photo.png")
MASK = ("--mask-image", "{inputs}/mask.png")
CONTROL = ("--control-image", "{inputs}/control.png")
TILES = ("--scale", "1.5", "--tile-size", "64", "--tile-overlap", "16")
SIDES = ("--width", "--height")
AS_PHOTO = (96, 64)


def controlnet(name: str) -> tuple[str, ...]:
    return ("--controlnet", f"{{checkpoints}}/{name}")


FLUX = (
    Case("flux", "text2image", "flux", (*TWO_STEPS, *SIZE), ("--prompt-2", "--true-cfg-scale", *SIDES), size=(64, 48)),
    Case(
        "flux",
        "img2img",
        "flux",
        (*FOUR_STEPS, *PHOTO),
        ("--image", "--strength"),
        size=AS_PHOTO,
        hides=("--mask-image",),
    ),
    Case("flux", "inpaint", "flux", (*FOUR_STEPS, *PHOTO, *MASK), ("--image", "--mask-image"), size=AS_PHOTO),
    Case("flux", "fill", "flux-fill", (*TWO_STEPS, *PHOTO, *MASK), ("--image", "--mask-image"), size=AS_PHOTO),
    Case("flux", "kontext", "flux-kontext", (*TWO_STEPS, *PHOTO, *SIZE), ("--image", "--max-area"), size=(64, 48)),
    Case(
        "flux",
        "controlnet",
        "flux",
        (*TWO_STEPS, *CONTROL, "--control-mode", "canny"),
        ("--control-image", "--control-mode", "--controlnet-conditioning-scale", "low-quality"),
        size=AS_PHOTO,
        build=controlnet("flux-controlnet"),
    ),
    Case(
        "flux",
        "upscale",
        "flux",
        (*FOUR_STEPS, *PHOTO, *TILES),
        ("--scale", "--tile-size", "--tile-overlap", "--resample"),
        size=(144, 96),
        hides=SIDES,
    ),
)

FLUX2 = (
    Case("flux2", "text2image", "flux2", (*TWO_STEPS, *PHOTO, *SIZE), ("--image", "--guidance-scale"), size=(64, 48)),
    Case("flux2", "klein", "flux2-klein", (*TWO_STEPS, *SIZE), ("--image", "--guidance-scale"), size=(64, 48)),
)

QWEN = (
    Case("qwen", "text2image", "qwen", (*TWO_STEPS, *SIZE), ("--negative-prompt", "--true-cfg-scale"), size=(64, 48)),
    Case("qwen", "img2img", "qwen", (*FOUR_STEPS, *PHOTO), ("--image", "--strength"), size=AS_PHOTO),
    # The autoencoder of the tiny ones has 16 x 16 pixels a latent, so sizes go in steps of 32.
    Case("qwen", "edit", "qwen-edit", (*TWO_STEPS, *PHOTO, "--width", "64", "--height", "32"), SIDES, size=(64, 32)),
    Case(
        "qwen",
        "edit-plus",
        "qwen-edit-plus",
        (*TWO_STEPS, *PHOTO, "--image", "{inputs}/control.png", "--width", "64", "--height", "32"),
        ("--image", "May be repeated"),
        size=(64, 32),
    ),
    Case(
        "qwen",
        "controlnet",
        "qwen",
        (*TWO_STEPS, *CONTROL),
        ("--control-image", "--control-guidance-end"),
        size=AS_PHOTO,
        build=controlnet("qwen-controlnet"),
    ),
    Case(
        "qwen",
        "layered",
        "qwen-layered",
        (*TWO_STEPS, "--image", "{inputs}/layers.png", "--layers", "2"),
        ("--layers", "--resolution", "--cfg-normalize", "--use-en-prompt"),
        size=(768, 512),  # as many pixels as 640 x 640, in the picture's proportions
        files=2,
        hides=SIDES,
    ),
    Case(
        "qwen",
        "upscale",
        "qwen",
        (*FOUR_STEPS, *PHOTO, *TILES),
        ("--scale", "--tile-size"),
        size=(144, 96),
        hides=SIDES,
    ),
)

STABLE_DIFFUSION = (
    Case(
        "stable-diffusion",
        "text2image",
        "stable-diffusion",
        (*TWO_STEPS, *SIZE),
        ("--negative-prompt", "--guidance-scale"),
        size=(64, 48),
    ),
    Case("stable-diffusion", "img2img", "stable-diffusion", (*FOUR_STEPS, *PHOTO), ("--strength",), size=AS_PHOTO),
    Case(
        "stable-diffusion",
        "inpaint",
        "stable-diffusion",
        (*FOUR_STEPS, *PHOTO, *MASK, *SIZE),
        ("--mask-image",),
        size=(64, 48),
    ),
    Case(
        "stable-diffusion",
        "controlnet",
        "stable-diffusion",
        (*TWO_STEPS, "--image", "{inputs}/control.png"),
        ("--image", "--controlnet-conditioning-scale"),
        size=AS_PHOTO,
        build=controlnet("sd-controlnet"),
    ),
    Case("stable-diffusion", "xl", "sdxl", (*TWO_STEPS, *SIZE), ("--prompt-2", "--original-size"), size=(64, 48)),
    Case("stable-diffusion", "xl-img2img", "sdxl", (*FOUR_STEPS, *PHOTO), ("--strength",), size=AS_PHOTO),
    Case(
        "stable-diffusion",
        "xl-inpaint",
        "sdxl",
        (*FOUR_STEPS, *PHOTO, *MASK, "--width", "96"),
        ("--mask-image",),
        size=AS_PHOTO,
    ),
    Case(
        "stable-diffusion",
        "xl-controlnet",
        "sdxl",
        (*TWO_STEPS, "--image", "{inputs}/control.png"),
        ("--image", "--controlnet-conditioning-scale"),
        size=AS_PHOTO,
        build=controlnet("sdxl-controlnet"),
    ),
    Case("stable-diffusion", "sd3", "sd3", (*TWO_STEPS, *SIZE), ("--prompt-3", "--max-sequence-length"), size=(64, 48)),
    # The tiny one's own size is 64 x 64: larger pictures are scaled down to as many pixels.
    Case("stable-diffusion", "sd3-img2img", "sd3", (*FOUR_STEPS, *PHOTO), ("--strength",), size=(64, 48)),
    Case(
        "stable-diffusion",
        "attend-excite",
        "stable-diffusion-deep",
        (*TWO_STEPS, "--words", "cat", "--words", "frog", "--width", "96", "--height", "64"),
        ("--words", "--max-iter-to-alter"),
        size=(96, 64),
        hides=("--token-indices",),
    ),
    Case(
        "stable-diffusion",
        "diffedit",
        "stable-diffusion",
        (*PROMPT, *PHOTO, "--mask-prompt", "a dog", "--num-inference-steps", "4", "--mask-thresholding-ratio", "1.5"),
        ("--image", "--mask-prompt", "--mask-encode-strength"),
        size=AS_PHOTO,
        files=2,  # the mask
        hides=("--mask-image",),
    ),
)

OTHERS = (
    Case("amused", "text2image", "amused", (*TWO_STEPS, *SIZE), ("--negative-prompt", *SIDES), size=(64, 48)),
    Case("amused", "img2img", "amused", (*FOUR_STEPS, *PHOTO), ("--strength",), size=AS_PHOTO, hides=SIDES),
    Case("amused", "inpaint", "amused", (*FOUR_STEPS, *PHOTO, *MASK), ("--mask-image",), size=AS_PHOTO, hides=SIDES),
    Case(
        "wuerstchen",
        "text2image",
        "wuerstchen",
        (*TWO_STEPS, "--prior-num-inference-steps", "2", "--width", "256", "--height", "128"),
        ("--prior-guidance-scale", "--decoder-guidance-scale"),
        size=(256, 128),
    ),
    Case("z-image", "text2image", "z-image", (*TWO_STEPS, *SIZE), ("--cfg-normalization",), size=(64, 48)),
    # The class is the one that the folder names.
    Case("custom", "any", "sd3", (*TWO_STEPS, *SIZE), ("--prompt-3",), size=(64, 48)),
)

CASES: tuple[Case, ...] = (*FLUX, *FLUX2, *QWEN, *STABLE_DIFFUSION, *OTHERS)
