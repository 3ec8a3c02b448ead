"""What a checkpoint says of itself by the names of its tensors: scales of float8 weights, markers, averaged weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from .canonical import JsonObject

# Tensors that mark a whole file, or hold what is no weight (ComfyUI's loaders): empty, or of two elements.
SCALED_FP8, V_PREDICTION, ZERO_SNR = "scaled_fp8", "v_pred", "ztsnr"
MARKERS = frozenset({SCALED_FP8, V_PREDICTION, ZERO_SNR, "edm_vpred.sigma_max", "edm_vpred.sigma_min", "spiece_model"})
# Beside NAME.weight: what it is to be multiplied by (ComfyUI's scaled files; LTX, compressed-tensors; DeepSeek's, which
# multiplies in spite of its name), and scales of what goes into the layer, which only float8 arithmetic needs.
SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv")
INPUT_SCALES = (".scale_input", ".input_scale", ".comfy_quant")
PACKED = (".weight_scale_2", ".weight_packed", ".qweight")  # two values in a byte, or a layout of one library's own
IN_CHECKPOINTS = tuple(f".{name}" for name in sorted(MARKERS))  # of a denoiser within a whole checkpoint
SCALE_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})  # others, of mxfp8, are powers of two in an order of their own
# Averages of the weights, kept beside them by the original trainer of Stable Diffusion (ldm/modules/ema.py).
AVERAGED = "model_ema."


@dataclass(frozen=True)
class Scaling:
    """How a file's weights are scaled: the scale of each weight by name, scales of no weight, and weights that are
    packed in a way that is not read here."""

    scales: Mapping[str, str]
    idle: tuple[str, ...]
    packed: tuple[str, ...]


def scaling(names: Collection[str]) -> Scaling:
    """The scaling of a file by the names of its tensors."""
    scales, idle = {}, []
    for name in names:
        if ending := next((one for one in SCALES if name.endswith(one)), None):
            weight = name.removesuffix(ending) + ".weight"
            if weight in names:
                scales[weight] = name
            else:
                idle.append(name)
    packed = tuple(sorted(name for name in names if name.endswith(PACKED)))
    return Scaling(scales, tuple(sorted(idle)), packed)


def is_mark(name: str) -> bool:
    """Whether a tensor is no weight of any component, but a marker or a scale."""
    return name in MARKERS or name.endswith(IN_CHECKPOINTS + SCALES + INPUT_SCALES)


def is_averaged(name: str) -> bool:
    return name.startswith(AVERAGED)


def spread(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape in which a scale multiplies a weight: one number, one a row, or one a block of rows and columns; None
    for a scale that fits in no such way."""
    if all(size == 1 for size in scale):
        return (1,) * len(shape)
    if not shape or min(scale) < 1 or shape[0] % scale[0] or len(scale) > len(shape):
        return None
    if all(size == 1 for size in scale[1:]):
        return (scale[0],) + (1,) * (len(shape) - 1)
    blocks = len(scale) == len(shape) == 2 and not shape[1] % scale[1]
    return scale if blocks else None


def scheduler_settings(names: Iterable[str], metadata: Mapping[str, str]) -> JsonObject:
    """What a denoiser's file says of its scheduler: marker tensors as NoobAI and ComfyUI have them, the prediction type
    as modelspec has it (Stability-AI/ModelSpec: "epsilon" or "v"), zero terminal SNR as kohya's trainer has it."""
    marks = {MARK.get(name.rpartition(".")[2], "") for name in names if name.rpartition(".")[2] in MARK}
    said = metadata.get("modelspec.prediction_type", "").lower()
    found: JsonObject = {}
    if "v" in marks or said in ("v", "v_prediction", "v-prediction"):
        found["prediction_type"] = "v_prediction"
    elif said in ("epsilon", "eps"):
        found["prediction_type"] = "epsilon"
    if "zero" in marks or metadata.get("ss_zero_terminal_snr", "").lower() == "true":
        found["rescale_betas_zero_snr"] = True
    return found


MARK = {V_PREDICTION: "v", ZERO_SNR: "zero"}
