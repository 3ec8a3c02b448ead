"""The corpus: every format of adapter files, for every family that it is found for."""

from __future__ import annotations

import torch

from . import formulas as f
from . import names as n
from . import names_transformers as t
from .trial import Part, Row, header

KOHYA = "kohya-ss/sd-scripts, networks/lora.py"
LYCORIS = "KohakuBlueleaf/LyCORIS, lycoris/modules"
PEFT = "huggingface/peft, utils/save_and_load.py"
COMFY = "comfyanonymous/ComfyUI, comfy/lora.py"
AI_TOOLKIT = "ostris/ai-toolkit, toolkit/network_mixins.py"
MUSUBI = "kohya-ss/musubi-tuner, networks/lora.py"
ONE_TRAINER = "Nerogar/OneTrainer, modules/util/convert/lora"
BFL = "black-forest-labs/flux, src/flux/modules/layers.py"

SD_UNET = n.flat("lora_unet", n.own("unet", n.TRANSFORMER_2D))
SD_FULL = n.flat("lora_unet", n.own("unet", "|".join((n.TRANSFORMER_2D, n.RESNETS, n.REST))))
SD_CLIP = n.flat("lora_te", n.clip("text_encoder"))
XL_CLIPS = n.together(n.flat("lora_te1", n.clip("text_encoder")), n.flat("lora_te2", n.clip("text_encoder_2")))
XL_LDM = n.flat("lora_unet", n.ldm(n.TRANSFORMER_2D))
XL_LDM_FULL = n.flat("lora_unet", n.ldm("|".join((n.TRANSFORMER_2D, n.RESNETS))))
XL_OWN = n.flat("lora_unet", n.own("unet", n.TRANSFORMER_2D))
FLUX_T5 = n.flat("lora_te3", n.t5("text_encoder_2"))
FLUX_CLIP = n.flat("lora_te1", n.clip("text_encoder"))


def config(**settings: object) -> dict[str, str]:
    """The header of a file that diffusers wrote: peft's LoraConfig, each entry after the component's name."""
    entries = {"peft_type": "LORA", "r": f.RANK, "bias": "none", "init_lora_weights": True, "target_modules": ["to_q"],
               "use_dora": False, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, **settings}  # fmt: skip
    return header(lora_adapter_metadata={f"transformer.{key}": value for key, value in entries.items()})


def row(format: str, family: str, source: str, *parts: tuple[n.Scheme, f.Formula], **more: object) -> Row:
    return Row(format, family, tuple(Part(*part) for part in parts), source, **more)  # type: ignore[arg-type]


def _stable_diffusion() -> list[Row]:
    """Stable Diffusion 1.x: all that was ever written for it."""
    sd, down_up = "Stable Diffusion 1", ("down", "up")
    own = n.under("unet.", n.own("unet", n.ATTENTION))
    text = n.under("text_encoder.", n.clip("text_encoder"))
    return [
        row(
            "diffusers, attention processors",
            sd,
            "huggingface/diffusers 0.14 to 0.20, loaders.py",
            (n.under("unet.", n.processors()), f.lora(*down_up)),
            (n.under("text_encoder.", n.clip_processors("text_encoder")), f.lora(*down_up)),
        ),
        row(
            "diffusers, attention processors, UNet alone",
            sd,
            "huggingface/diffusers 0.11 to 0.16, examples/dreambooth/train_dreambooth_lora.py",
            (n.processors(), f.lora(*down_up)),
        ),
        row(
            "diffusers, LoRA layers",
            sd,
            "huggingface/diffusers 0.21 to 0.24, models/lora.py",
            (own, f.lora("lora.down", "lora.up")),
            (text, f.lora("lora_linear_layer.down", "lora_linear_layer.up")),
        ),
        row("PEFT", sd, PEFT, (own, f.PEFT), (text, f.PEFT)),
        row("kohya", sd, KOHYA, (SD_UNET, f.KOHYA), (SD_CLIP, f.KOHYA), dtype=torch.float16),
        row("kohya, no alpha", sd, KOHYA, (SD_UNET, f.PLAIN), (SD_CLIP, f.PLAIN)),
        row("LoCon", sd, f"{LYCORIS}/locon.py", (SD_FULL, f.KOHYA), (SD_CLIP, f.KOHYA)),
        row("LoCon, Tucker", sd, f"{LYCORIS}/locon.py", (SD_FULL, f.with_mid), (SD_CLIP, f.KOHYA)),
        row("kohya, LDM names", sd, COMFY, (n.flat("lora_unet", n.ldm(n.TRANSFORMER_2D)), f.KOHYA)),
        row("kohya, convolutions as matrices", sd, KOHYA, (SD_UNET, f.as_matrix(f.KOHYA))),
        row("LoHa", sd, f"{LYCORIS}/loha.py", (SD_FULL, f.loha), (SD_CLIP, f.loha), dtype=torch.bfloat16),
        row("LoHa, Tucker", sd, f"{LYCORIS}/loha.py", (SD_FULL, f.loha_tucker), (SD_CLIP, f.loha)),
        row("LoKr", sd, f"{LYCORIS}/lokr.py", (SD_FULL, f.lokr("w2", 1.0)), (SD_CLIP, f.lokr("w2", 3.0))),
        row(
            "LoKr, both in two", sd, f"{LYCORIS}/lokr.py", (SD_FULL, f.lokr("both", 1.0)), (SD_CLIP, f.lokr("w1", 1.0))
        ),
        row("LoKr, whole", sd, f"{LYCORIS}/lokr.py", (SD_FULL, f.lokr("full", 16.0)), (SD_CLIP, f.lokr("full", 1.0))),
        row("LoKr, Tucker", sd, f"{LYCORIS}/lokr.py", (SD_FULL, f.lokr("tucker", 1.0))),
        row("(IA)^3 of LyCORIS", sd, f"{LYCORIS}/ia3.py", (SD_FULL, f.ia3), (SD_CLIP, f.ia3)),
        row("full differences", sd, f"{LYCORIS}/full.py", (SD_FULL, f.difference), (SD_CLIP, f.difference)),
        row(
            "norms",
            sd,
            f"{LYCORIS}/norms.py",
            (n.flat("lora_unet", n.own("unet", n.NORMS)), f.norm),
            (SD_UNET, f.KOHYA),
        ),
        row(
            "DoRA of LyCORIS, by input",
            sd,
            f"{LYCORIS}/locon.py",
            (SD_FULL, f.dora(1, f.KOHYA)),
            (SD_CLIP, f.dora(1, f.KOHYA)),
        ),
        row(
            "DoRA of LyCORIS, by output",
            sd,
            f"{LYCORIS}/locon.py",
            (SD_FULL, f.dora(0, f.KOHYA)),
            (SD_CLIP, f.dora(0, f.KOHYA)),
        ),
        row("DoRA with LoHa", sd, f"{LYCORIS}/loha.py", (SD_FULL, f.dora(1, f.loha))),
        row("DoRA with LoKr", sd, f"{LYCORIS}/lokr.py", (SD_FULL, f.dora(0, f.lokr("w2", 1.0)))),
        row("DoRA of peft", sd, PEFT, (own, f.peft_dora), (text, f.peft_dora)),
        row("(IA)^3 of peft", sd, "huggingface/peft, tuners/ia3/layer.py", (own, f.peft_ia3)),
    ]


def _sdxl() -> list[Row]:
    own = n.under("unet.", n.own("unet", n.ATTENTION))
    clips = n.together(
        n.under("text_encoder.", n.clip("text_encoder")), n.under("text_encoder_2.", n.clip("text_encoder_2"))
    )
    return [
        row(
            "diffusers, LoRA layers",
            "SDXL",
            "huggingface/diffusers 0.21 to 0.24, models/lora.py",
            (own, f.lora("lora.down", "lora.up")),
            (clips, f.lora("lora_linear_layer.down", "lora_linear_layer.up")),
        ),
        row("PEFT", "SDXL", PEFT, (own, f.PEFT), (clips, f.PEFT)),
        row("kohya", "SDXL", KOHYA, (XL_LDM, f.KOHYA), (XL_CLIPS, f.KOHYA), dtype=torch.float16),
        row("LoCon", "SDXL", f"{LYCORIS}/locon.py", (XL_LDM_FULL, f.KOHYA), (XL_CLIPS, f.KOHYA)),
        row("LoCon, Tucker", "SDXL", f"{LYCORIS}/locon.py", (XL_LDM_FULL, f.with_mid)),
        row("OneTrainer", "SDXL", f"{ONE_TRAINER}/convert_sdxl_lora.py", (XL_OWN, f.KOHYA), (XL_CLIPS, f.KOHYA)),
        row(
            "LCM-LoRA",
            "SDXL",
            "latent-consistency/lcm-lora-sdxl",
            (n.flat("lora_unet", n.own("unet", "|".join((n.TRANSFORMER_2D, n.RESNETS)))), f.KOHYA),
        ),
        row(
            "DoRA of OneTrainer",
            "SDXL",
            "Nerogar/OneTrainer, modules/module/LoRAModule.py",
            (XL_OWN, f.dora(1, f.KOHYA)),
            (XL_CLIPS, f.dora(1, f.KOHYA)),
        ),
        row("DoRA of LyCORIS, by output", "SDXL", f"{LYCORIS}/locon.py", (XL_LDM_FULL, f.dora(0, f.KOHYA))),
        row("kohya, matrices as convolutions", "SDXL", KOHYA, (XL_LDM, f.as_convolution(f.KOHYA))),
        row("LoHa", "SDXL", f"{LYCORIS}/loha.py", (XL_LDM_FULL, f.loha), (XL_CLIPS, f.loha)),
        row("LoKr", "SDXL", f"{LYCORIS}/lokr.py", (XL_LDM_FULL, f.lokr("w2", 1.0)), (XL_CLIPS, f.lokr("full", 4.0))),
        row("(IA)^3 of LyCORIS", "SDXL", f"{LYCORIS}/ia3.py", (XL_LDM_FULL, f.ia3)),
        row("full differences", "SDXL", f"{LYCORIS}/full.py", (XL_LDM_FULL, f.difference)),
    ]


def _sd3() -> list[Row]:
    sd3, own = "Stable Diffusion 3", n.under("transformer.", t.SD3_OWN)
    encoders = n.together(XL_CLIPS, n.flat("lora_te3", n.t5("text_encoder_3")))
    return [
        row("PEFT", sd3, PEFT, (own, f.PEFT), (n.under("text_encoder.", n.clip("text_encoder")), f.PEFT)),
        row(
            "kohya",
            sd3,
            "kohya-ss/sd-scripts, networks/lora_sd3.py",
            (n.flat("lora_unet", t.SD3), f.KOHYA),
            (encoders, f.KOHYA),
        ),
        row(
            "OneTrainer",
            sd3,
            f"{ONE_TRAINER}/convert_sd3_lora.py",
            (n.flat("lora_transformer", t.SD3_OWN), f.KOHYA),
            (encoders, f.KOHYA),
        ),
        row("ComfyUI", sd3, COMFY, (n.under("diffusion_model.", t.SD3), f.PEFT)),
        row(
            "kohya, all layers",
            sd3,
            "kohya-ss/sd-scripts, networks/lora_sd3.py",
            (n.flat("lora_unet", t.SD3_WHOLE), f.KOHYA),
        ),
        row("LoKr", sd3, f"{LYCORIS}/lokr.py", (n.flat("lora_unet", t.SD3), f.lokr("w2", 1.0))),
    ]


def _flux() -> list[Row]:
    flux, own = "Flux", n.under("transformer.", t.FLUX_OWN)
    kohya, flux_kohya = n.flat("lora_unet", t.FLUX), "kohya-ss/sd-scripts, networks/lora_flux.py"
    encoders = n.together(FLUX_CLIP, FLUX_T5)
    one_trainer = n.together(
        n.flat("lora_transformer", t.FLUX_OWN), FLUX_CLIP, n.flat("lora_te2", n.t5("text_encoder_2"))
    )
    return [
        row("PEFT", flux, PEFT, (own, f.PEFT), (n.under("text_encoder.", n.clip("text_encoder")), f.PEFT)),
        row("PEFT, with the adapter's name", flux, PEFT, (own, f.PEFT_DEFAULT)),
        row("PEFT, base_model.model", flux, PEFT, (n.under("base_model.model.", t.FLUX_OWN), f.PEFT)),
        row("PEFT of fal", flux, "fal.ai, flux-lora-fast-training", (n.under("base_model.model.", t.FLUX), f.PEFT)),
        row(
            "LoKr of SimpleTuner",
            flux,
            "bghira/SimpleTuner, documentation/LYCORIS.md",
            (n.flat("lycoris", t.FLUX_OWN), f.lokr("w2", 1.0)),
        ),
        row(
            "diffusers, alpha in the header",
            flux,
            "huggingface/diffusers, loaders/lora_base.py",
            (own, f.scaled("lora_A", "lora_B", 2.0)),
            metadata=config(lora_alpha=2 * f.RANK),
        ),
        row(
            "diffusers, alpha by layer in the header",
            flux,
            "huggingface/diffusers, loaders/lora_base.py",
            (n.only(r"\.to_q$", own), f.scaled("lora_A", "lora_B", 0.25)),
            (n.only(r"(?<!\.to_q)$", own), f.scaled("lora_A", "lora_B", 2.0)),
            metadata=config(lora_alpha=2 * f.RANK, alpha_pattern={"to_q": f.RANK / 4}),
        ),
        row(
            "diffusers, rsLoRA in the header",
            flux,
            "huggingface/peft, tuners/lora/layer.py",
            (own, f.scaled("lora_A", "lora_B", 6 / f.RANK**0.5)),
            metadata=config(lora_alpha=6, use_rslora=True),
        ),
        row("DoRA of peft", flux, PEFT, (own, f.peft_dora)),
        row("kohya", flux, flux_kohya, (kohya, f.KOHYA), (encoders, f.KOHYA), dtype=torch.bfloat16),
        row("kohya, all layers", flux, flux_kohya, (n.flat("lora_unet", t.FLUX_WHOLE), f.KOHYA)),
        row("diffusers' names, kohya's matrices", flux, ONE_TRAINER, (own, f.KOHYA)),
        row("ai-toolkit", flux, AI_TOOLKIT, (own, f.PEFT), dtype=torch.bfloat16),
        row(
            "LoKr of ai-toolkit", flux, "ostris/ai-toolkit, toolkit/models/lokr.py", (own, f.lokr("full", 9999999999.0))
        ),
        row("OneTrainer", flux, f"{ONE_TRAINER}/convert_flux_lora.py", (one_trainer, f.KOHYA)),
        row(
            "DoRA of OneTrainer",
            flux,
            "Nerogar/OneTrainer, modules/module/LoRAModule.py",
            (one_trainer, f.dora(1, f.KOHYA)),
        ),
        row("BFL", flux, BFL, (t.FLUX, f.PEFT)),
        row("BFL, all layers", flux, BFL, (t.FLUX_WHOLE, f.PEFT)),
        row(
            "BFL Control, with biases and norms",
            flux,
            f"{BFL}; {COMFY}_convert.py",
            (n.only("^(?!img_in)", t.FLUX_CONTROL), f.instead("scale", f.peft_with_bias)),
        ),
        row("xlabs", flux, "XLabs-AI/x-flux, src/flux/modules/layers.py", (t.XLABS, f.lora("down", "up"))),
        row(
            "xlabs, ComfyUI",
            flux,
            "XLabs-AI/x-flux-comfyui",
            (n.under("diffusion_model.", t.XLABS), f.lora("down", "up")),
        ),
        row("ComfyUI", flux, COMFY, (n.under("diffusion_model.", t.FLUX_WHOLE), f.KOHYA)),
        row("ComfyUI, PEFT", flux, COMFY, (n.under("diffusion_model.", t.FLUX), f.lora("lora_A", "lora_B", 2.0))),
        row(
            "ComfyUI, text encoders",
            flux,
            COMFY,
            (n.under("diffusion_model.", t.FLUX), f.KOHYA),
            (n.under("text_encoders.clip_l.transformer.", n.clip("text_encoder")), f.KOHYA),
            (n.under("text_encoders.t5xxl.transformer.", n.t5("text_encoder_2")), f.KOHYA),
        ),
        row("LoRA with diff_b", flux, COMFY, (n.flat("lora_unet", t.FLUX), f.with_bias(f.KOHYA))),
        row("ComfyUI, whole prefix", flux, COMFY, (n.under("model.diffusion_model.", t.FLUX), f.KOHYA)),
        row("BFL's names in diffusers' prefix", flux, COMFY, (n.under("transformer.", t.FLUX), f.PEFT)),
        row("full differences", flux, COMFY, (n.under("diffusion_model.", t.FLUX_WHOLE), f.difference)),
        row("LoHa", flux, f"{LYCORIS}/loha.py", (kohya, f.loha)),
        row("LoKr", flux, f"{LYCORIS}/lokr.py", (kohya, f.lokr("w2", 1.0)), (FLUX_T5, f.lokr("w2", 1.0))),
        row("LoKr, both in two", flux, f"{LYCORIS}/lokr.py", (kohya, f.lokr("both", 1.0))),
        row("DoRA of LyCORIS, by input", flux, f"{LYCORIS}/locon.py", (kohya, f.dora(1, f.KOHYA))),
        row(
            "DoRA of LyCORIS, by output",
            flux,
            f"{LYCORIS}/locon.py",
            (kohya, f.dora(0, f.KOHYA)),
            (encoders, f.dora(0, f.KOHYA)),
        ),
        row("(IA)^3 of LyCORIS", flux, f"{LYCORIS}/ia3.py", (n.flat("lora_unet", t.FLUX_OWN), f.ia3)),
    ]


def _flux_control() -> list[Row]:
    control, names = "Flux Control", n.only("^img_in", t.FLUX_CONTROL)
    rest = n.only("^(?!img_in)", t.FLUX_CONTROL)
    return [
        row(
            "BFL Control",
            control,
            "black-forest-labs/FLUX.1-Depth-dev-lora",
            (names, f.wider),
            (rest, f.instead("scale", f.peft_with_bias)),
        ),
        row("kohya", control, KOHYA, (n.flat("lora_unet", t.FLUX), f.KOHYA)),
    ]


def _flux2() -> list[Row]:
    flux2 = "Flux 2"
    return [
        row("PEFT", flux2, PEFT, (n.under("transformer.", t.FLUX2_OWN), f.PEFT)),
        row("PEFT of fal", flux2, "fal/flux-2-klein-4B-outpaint-lora", (n.under("base_model.model.", t.FLUX2), f.PEFT)),
        row("ai-toolkit", flux2, AI_TOOLKIT, (n.under("diffusion_model.", t.FLUX2), f.PEFT)),
        row("ComfyUI, all layers", flux2, COMFY, (n.under("diffusion_model.", t.FLUX2_WHOLE), f.PLAIN)),
        row("musubi-tuner", flux2, MUSUBI, (n.flat("lora_unet", t.FLUX2), f.KOHYA)),
        row(
            "LoKr of ai-toolkit",
            flux2,
            "ostris/ai-toolkit, toolkit/models/lokr.py",
            (n.under("diffusion_model.", t.FLUX2), f.lokr("full", 9999999999.0)),
        ),
        row("LoKr", flux2, f"{LYCORIS}/lokr.py", (n.flat("lycoris", t.FLUX2_OWN), f.lokr("w2", 1.0))),
    ]


def _qwen() -> list[Row]:
    qwen, musubi = "Qwen Image", n.flat("lora_unet", t.QWEN)
    return [
        row("PEFT", qwen, PEFT, (n.under("transformer.", t.QWEN), f.PEFT)),
        row("PEFT, base_model.model", qwen, PEFT, (n.under("base_model.model.", t.QWEN), f.PEFT)),
        row("DiffSynth-Studio", qwen, "modelscope/DiffSynth-Studio, diffsynth/lora", (t.QWEN, f.PEFT_DEFAULT)),
        row("Lightning", qwen, "ModelTC/Qwen-Image-Lightning", (t.QWEN, f.KOHYA)),
        row("ai-toolkit", qwen, AI_TOOLKIT, (n.under("diffusion_model.", t.QWEN), f.PEFT), dtype=torch.bfloat16),
        row("musubi-tuner", qwen, MUSUBI, (musubi, f.KOHYA)),
        row("LoHa of musubi-tuner", qwen, "kohya-ss/musubi-tuner, docs/loha_lokr.md", (musubi, f.loha)),
        row("LoKr of musubi-tuner", qwen, "kohya-ss/musubi-tuner, docs/loha_lokr.md", (musubi, f.lokr("w2", 1.0))),
        row("DoRA of LyCORIS, by output", qwen, f"{LYCORIS}/locon.py", (musubi, f.dora(0, f.KOHYA))),
    ]


def _z_image() -> list[Row]:
    z_image = "Z-Image"
    return [
        row("PEFT", z_image, PEFT, (n.under("transformer.", t.Z_IMAGE), f.PEFT)),
        row("ai-toolkit", z_image, AI_TOOLKIT, (n.under("diffusion_model.", t.Z_IMAGE), f.PEFT)),
        row("musubi-tuner", z_image, MUSUBI, (n.flat("lora_unet", t.Z_IMAGE), f.KOHYA)),
        row(
            "ComfyUI, fused",
            z_image,
            "comfyanonymous/ComfyUI, comfy/ldm/lumina/model.py",
            (n.under("diffusion_model.", t.Z_IMAGE_FUSED), f.PEFT),
        ),
        row("ComfyUI, all layers", z_image, COMFY, (n.under("diffusion_model.", t.Z_IMAGE_WHOLE), f.KOHYA)),
        row("DoRA by input, fused", z_image, COMFY, (n.under("diffusion_model.", t.Z_IMAGE_FUSED), f.dora(1, f.PEFT))),
        row("kohya, fused", z_image, COMFY, (n.flat("lora_unet", t.Z_IMAGE_FUSED), f.KOHYA)),
        row(
            "LoKr of ai-toolkit",
            z_image,
            "ostris/ai-toolkit, toolkit/models/lokr.py",
            (n.under("diffusion_model.", t.Z_IMAGE), f.lokr("full", 9999999999.0)),
        ),
    ]


def _wan() -> list[Row]:
    wan, image, two = "Wan 2.1", "Wan 2.1 image to video", "Wan 2.2"
    return [
        row("PEFT", wan, PEFT, (n.under("transformer.", t.wan_own()), f.PEFT)),
        row("ai-toolkit", wan, AI_TOOLKIT, (n.under("diffusion_model.", t.wan()), f.PEFT)),
        row("musubi-tuner", wan, MUSUBI, (n.flat("lora_unet", t.wan()), f.KOHYA)),
        row("double underscore", wan, "Wan LoRAs of older musubi-tuner", (n.flat("lora_unet_", t.wan()), f.KOHYA)),
        row(
            "lightx2v, with diff_m",
            wan,
            "lightx2v, LoRAs of step distillation",
            (n.under("diffusion_model.", t.wan()), f.PLAIN),
            (n.under("diffusion_model.", t.WAN_TABLES), f.modulation),
        ),
        row("DiffSynth-Studio", wan, "modelscope/DiffSynth-Studio, diffsynth/lora", (t.wan(), f.PEFT_DEFAULT)),
        row(
            "ComfyUI, with differences",
            wan,
            "Kijai/WanVideo_comfy, extracted LoRAs",
            (n.under("diffusion_model.", t.wan_whole()), f.with_bias(f.PLAIN)),
            dtype=torch.bfloat16,
        ),
        row(
            "LoKr of ai-toolkit",
            wan,
            "ostris/ai-toolkit, toolkit/models/lokr.py",
            (n.under("diffusion_model.", t.wan()), f.lokr("full", 9999999999.0)),
        ),
        row(
            "LoHa of musubi-tuner",
            wan,
            "kohya-ss/musubi-tuner, docs/loha_lokr.md",
            (n.flat("lora_unet", t.wan()), f.loha),
        ),
        row(
            "ComfyUI, with differences",
            image,
            "Kijai/WanVideo_comfy, extracted LoRAs",
            (n.under("diffusion_model.", t.wan_whole()), f.with_bias(f.PLAIN)),
        ),
        row("musubi-tuner", image, MUSUBI, (n.flat("lora_unet", t.wan()), f.KOHYA)),
        row("ai-toolkit, one file", two, AI_TOOLKIT, (n.under("diffusion_model.", t.wan()), f.PEFT)),
        row(
            "ai-toolkit, high noise",
            two,
            AI_TOOLKIT,
            (n.under("diffusion_model.", t.wan()), f.PEFT),
            file="style_high_noise.safetensors",
        ),
        row(
            "ai-toolkit, low noise",
            two,
            AI_TOOLKIT,
            (n.under("diffusion_model.", t.wan("transformer_2")), f.PEFT),
            file="style_low_noise.safetensors",
        ),
        row(
            "PEFT, for the denoiser that was named",
            two,
            PEFT,
            (n.under("transformer.", t.wan_own("transformer_2")), f.PEFT),
            into="transformer_2",
        ),
        row(
            "ComfyUI, low noise",
            two,
            "Comfy-Org/Wan_2.2_ComfyUI_Repackaged",
            (n.under("diffusion_model.", t.wan_whole("transformer_2")), f.with_bias(f.PLAIN)),
            file="wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors",
        ),
    ]


def _ltx() -> list[Row]:
    comfy = n.under("diffusion_model.", n.together(t.LTX, t.LTX_OUTER))
    return [
        row("PEFT", "LTX", PEFT, (n.under("transformer.", t.LTX), f.PEFT)),
        row("ComfyUI", "LTX", "Lightricks/LTX-Video-Trainer", (n.under("diffusion_model.", t.LTX), f.PEFT)),
        row("ComfyUI, all layers", "LTX", "Lightricks/LTX-Video, transformer3d.py", (comfy, f.PEFT)),
        row("PEFT", "LTX 2", PEFT, (n.under("transformer.", t.LTX), f.PEFT)),
        row(
            "ComfyUI",
            "LTX 2",
            "Lightricks/LTX-2, ltx-trainer",
            (n.under("diffusion_model.", n.together(t.LTX, t.LTX2_OUTER)), f.PEFT),
        ),
    ]


def _hunyuan() -> list[Row]:
    hunyuan = "HunyuanVideo"
    return [
        row("PEFT", hunyuan, PEFT, (n.under("transformer.", t.HUNYUAN_OWN), f.PEFT)),
        row("FramePack of musubi-tuner", hunyuan, MUSUBI, (n.flat("lora_unet", t.HUNYUAN_OWN), f.KOHYA)),
        row("musubi-tuner", hunyuan, MUSUBI, (n.flat("lora_unet", t.HUNYUAN), f.KOHYA)),
        row("ComfyUI, all layers", hunyuan, COMFY, (n.under("diffusion_model.", t.HUNYUAN_WHOLE), f.PLAIN)),
        row("ComfyUI", hunyuan, COMFY, (n.under("diffusion_model.", t.HUNYUAN), f.PEFT)),
        row(
            "original",
            hunyuan,
            "Tencent/HunyuanVideo, hyvideo/modules/models.py",
            (n.under("transformer.", t.HUNYUAN), f.PEFT),
        ),
    ]


ROWS: tuple[Row, ...] = (
    *_stable_diffusion(),
    *_sdxl(),
    *_sd3(),
    *_flux(),
    *_flux_control(),
    *_flux2(),
    *_qwen(),
    *_z_image(),
    *_wan(),
    *_ltx(),
    *_hunyuan(),
)
