"""What every type of a family that makes video or sound must make: see cases.py."""

from __future__ import annotations

from dataclasses import replace

from cases import Case

PROMPT = ("--prompt", "a cat and a frog")
TWO_STEPS = (*PROMPT, "--num-inference-steps", "2")
# Wan 2.2 hands over to its second denoiser after the first of them; half are done at a strength of 0.5.
FOUR_STEPS = (*PROMPT, "--num-inference-steps", "4")
SIZE = ("--width", "64", "--height", "32")
PHOTO = ("--image", "{inputs}/photo.png")  # 96 x 64
CLIP = ("--video", "{inputs}/clip.mp4")  # 9 frames of 96 x 64
FRAMES, MASKS = "{inputs}/frames", "{inputs}/masks"
AREA = ("--max-area", str(48 * 32))  # 48 x 32 in the proportions of the inputs
SIDES = ("--width", "--height")

FIVE = (*SIZE, "--num-frames", "5")
WAN = Case(
    "wan",
    "text2video",
    "wan",
    (*TWO_STEPS, *FIVE),
    ("--num-frames", "--guidance-scale-2", "--negative-prompt", *SIDES),
    "video",
    size=(64, 32),
    frames=5,
    fps=16,
    hides=("--image", "--max-area"),
)
WAN_IMAGE = replace(
    WAN,
    type="img2video",
    checkpoint="wan-i2v",
    flags=(*TWO_STEPS, *PHOTO, *AREA, "--num-frames", "5"),
    shows=("--image", "--last-image", "--max-area", *SIDES),
    size=(48, 32),
    hides=("--video",),
)
WAN_VIDEO = replace(
    WAN_IMAGE,
    type="video2video",
    checkpoint="wan",
    flags=(*FOUR_STEPS, *CLIP, *AREA, "--strength", "0.5"),
    shows=("--video", "--strength", "--max-area", *SIDES),
    frames=9,
    hides=("--image", "--num-frames", "--guidance-scale-2"),
)
VACE = replace(
    WAN_VIDEO,
    type="vace",
    checkpoint="wan-vace",
    flags=(*TWO_STEPS, "--video", FRAMES, "--mask", MASKS, "--reference-images", "{inputs}/photo.png", *AREA),
    shows=("--video", "--mask", "--reference-images", "--conditioning-scale", "--num-frames", *SIDES),
    hides=("--num-videos-per-prompt",),
)
WANS = (
    WAN,
    replace(WAN, checkpoint="wan22", flags=(*FOUR_STEPS, *FIVE, "--guidance-scale-2", "3"), variant="22"),
    WAN_IMAGE,
    replace(
        WAN_IMAGE,
        checkpoint="wan22-i2v",
        flags=(*FOUR_STEPS, *PHOTO, *AREA, "--num-frames", "5", "--last-image", "{inputs}/control.png"),
        variant="22",
    ),
    WAN_VIDEO,
    VACE,
    replace(
        VACE, flags=(*TWO_STEPS, *CLIP, "--mask", "{inputs}/mask.png", *FIVE), size=(64, 32), frames=5, variant="cut"
    ),
    replace(VACE, flags=(*TWO_STEPS, *FIVE), size=(64, 32), frames=5, variant="text"),
)

NINE = ("--num-frames", "9")
LTX = Case(
    "ltx",
    "text2video",
    "ltx",
    (*TWO_STEPS, *SIZE, *NINE),
    ("--num-frames", "--frame-rate", "--decode-timestep", *SIDES),
    "video",
    size=(64, 32),
    frames=9,
    fps=25,
)
LARGER = ("--width", "96", "--height", "64")  # two latents to a side are the least
# Sound is made in steps of 40 ms: a little less than 9 frames of 24 a second.
LTX2 = replace(
    LTX,
    type="ltx2",
    checkpoint="ltx2",
    flags=(*TWO_STEPS, *LARGER, *NINE, "--spatio-temporal-guidance-blocks", "1"),
    shows=("--frame-rate", "--audio-guidance-scale", "--stg-scale", *SIDES),
    size=(96, 64),
    fps=24,
    rate=24_000,
    seconds=0.33,
    hides=("--image",),
)
LTXES = (
    LTX,
    LTX2,
    replace(
        LTX2,
        type="ltx2-img2video",
        flags=(*TWO_STEPS, *PHOTO, *NINE, "--max-area", str(96 * 64), "--spatio-temporal-guidance-blocks", "1"),
        shows=("--image", "--max-area", "--frame-rate"),
        hides=("--video",),
    ),
)

ALLEGRO = Case(
    "allegro",
    "text2video",
    "allegro",
    TWO_STEPS,
    ("--num-frames", "--clean-caption", *SIDES),
    "video",
    size=(320, 320),
    frames=24,
    fps=15,
    hides=("--num-videos-per-prompt",),
)

AUDIOLDM = Case(
    "audioldm",
    "text2audio",
    "audioldm",
    (*TWO_STEPS, "--audio-length-in-s", "0.5"),
    ("--audio-length-in-s", "--negative-prompt", "--num-waveforms-per-prompt"),
    "audio",
    rate=16_000,
    seconds=0.5,
    hides=SIDES,
)
AUDIOLDM2 = replace(
    AUDIOLDM,
    type="audioldm2",
    checkpoint="audioldm2",
    flags=(*AUDIOLDM.flags, "--num-waveforms-per-prompt", "2"),
    shows=("--audio-length-in-s", "--transcription", "--max-new-tokens"),
    files=2,
)

# The class of the folder, with nothing but its own signature; frames a second are its example's.
CUSTOM = (
    replace(WAN, provider="custom", type="any", variant="video", hides=("--image",)),
    replace(AUDIOLDM2, provider="custom", type="any", variant="audio"),
)

CASES: tuple[Case, ...] = (*WANS, *LTXES, ALLEGRO, AUDIOLDM, AUDIOLDM2, *CUSTOM)
