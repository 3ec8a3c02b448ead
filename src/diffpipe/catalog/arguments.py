"""What is known of well-known call arguments, whatever the pipeline. Plain data: no torch, no diffusers.

`read_flags` lays ARGUMENTS over what it reads from a signature, under what the pipeline's own `check_inputs` enforces
and under the row's flags. `help` is used only where the docstring says nothing. Ranges are inclusive.

Sources (diffusers 0.42): width and height go in steps of 8, the pixels to a side of one latent of the usual
autoencoders; where `check_inputs` asks for 16 or 32, that is read from it. Strength, and the start and end of a
ControlNet, in 0..1 as `check_inputs` has them. `max_sequence_length` has no maximum here: pipelines that enforce one
differ (256 to 3000). `eta` in 0..1 is the DDIM paper's (arXiv:2010.02502), `guidance_rescale` that of arXiv:2305.08891.
"""

from __future__ import annotations

from collections.abc import Mapping

from .rows import FlagFields

_FRACTION: FlagFields = {"minimum": 0, "maximum": 1}
_AT_LEAST_ZERO: FlagFields = {"minimum": 0}
_AT_LEAST_ONE: FlagFields = {"minimum": 1}
_PIXELS: FlagFields = {"minimum": 8, "multiple_of": 8}

ARGUMENTS: Mapping[str, FlagFields] = {
    "prompt": {"help": "What to make."},
    "prompt_2": {"help": "The prompt for the second text encoder; the prompt itself by default."},
    "prompt_3": {"help": "The prompt for the third text encoder; the prompt itself by default."},
    "negative_prompt": {"help": "What to keep out of the result. Takes effect only with guidance on."},
    "negative_prompt_2": {"help": "The negative prompt for the second text encoder; the negative prompt by default."},
    "negative_prompt_3": {"help": "The negative prompt for the third text encoder; the negative prompt by default."},
    "image": {"help": "The picture to start from."},
    "mask_image": {"help": "The mask of what to paint anew: white is repainted, black is kept."},
    "control_image": {"help": "The picture that the ControlNet follows."},
    "control_mask": {"help": "The mask of the area that the ControlNet acts on."},
    "last_image": {"help": "The picture that the video ends with."},
    "ip_adapter_image": {"help": "The picture that the IP-Adapter takes as a prompt."},
    "negative_ip_adapter_image": {"help": "The picture that the IP-Adapter steers away from."},
    "video": {"help": "The video to start from."},
    "width": {**_PIXELS, "help": "The width of the result in pixels."},
    "height": {**_PIXELS, "help": "The height of the result in pixels."},
    "num_inference_steps": {**_AT_LEAST_ONE, "help": "The number of denoising steps."},
    "prior_num_inference_steps": {**_AT_LEAST_ONE, "help": "The number of denoising steps of the prior."},
    "decoder_num_inference_steps": {**_AT_LEAST_ONE, "help": "The number of denoising steps of the decoder."},
    "num_images_per_prompt": {**_AT_LEAST_ONE, "help": "The number of images to make for each prompt."},
    "num_videos_per_prompt": {**_AT_LEAST_ONE, "help": "The number of videos to make for each prompt."},
    "num_waveforms_per_prompt": {**_AT_LEAST_ONE, "help": "The number of sounds to make for each prompt."},
    "batch_size": {**_AT_LEAST_ONE, "help": "The number of results to make at once."},
    "num_frames": {**_AT_LEAST_ONE, "help": "The number of frames of the video."},
    "fps": {**_AT_LEAST_ONE, "help": "The frames a second that the video is meant to play at."},
    "frame_rate": {"minimum": 1, "help": "The frames a second that the video is meant to play at."},
    "decode_chunk_size": {**_AT_LEAST_ONE, "help": "The number of frames decoded at once; fewer need less memory."},
    "strength": {**_FRACTION, "help": "How far to move from the starting picture: 0 keeps it, 1 ignores it."},
    "guidance_scale": {**_AT_LEAST_ZERO, "help": "How closely to follow the prompt (guidance scale)."},
    "guidance_scale_2": {**_AT_LEAST_ZERO, "help": "The guidance scale of the second denoiser."},
    "prior_guidance_scale": {**_AT_LEAST_ZERO, "help": "The guidance scale of the prior."},
    "decoder_guidance_scale": {**_AT_LEAST_ZERO, "help": "The guidance scale of the decoder."},
    "image_guidance_scale": {**_AT_LEAST_ZERO, "help": "How closely to follow the starting picture."},
    "true_cfg_scale": {**_AT_LEAST_ZERO, "help": "The guidance scale between prompt and negative prompt; 1 is off."},
    "guidance_rescale": {**_FRACTION, "help": "How far to rescale guided noise against overexposure; 0 is off."},
    "pag_scale": {**_AT_LEAST_ZERO, "help": "The scale of perturbed-attention guidance; 0 is off."},
    "pag_adaptive_scale": {**_AT_LEAST_ZERO, "help": "How fast perturbed-attention guidance fades over the steps."},
    "sag_scale": {**_AT_LEAST_ZERO, "help": "The scale of self-attention guidance; 0 is off."},
    "controlnet_conditioning_scale": {"help": "How strongly the ControlNet acts."},
    "control_guidance_start": {**_FRACTION, "help": "The share of the steps after which the ControlNet starts."},
    "control_guidance_end": {**_FRACTION, "help": "The share of the steps after which the ControlNet stops."},
    "guess_mode": {"help": "Let the ControlNet guess what the picture shows, even without a prompt."},
    "denoising_start": {**_FRACTION, "help": "The share of the steps to skip: what an earlier pipeline has done."},
    "denoising_end": {**_FRACTION, "help": "The share of the steps to do, leaving the rest to a refiner."},
    "eta": {**_FRACTION, "help": "The noise added at each step by the DDIM scheduler; others ignore it."},
    "clip_skip": {**_AT_LEAST_ONE, "help": "The number of last CLIP layers to skip when encoding the prompt."},
    "max_sequence_length": {**_AT_LEAST_ONE, "help": "The number of tokens of the prompt that are read."},
    "padding_mask_crop": {"minimum": 0, "help": "Crop to the mask plus this margin in pixels, and paint at full size."},
    "timesteps": {"help": "The timesteps to denoise at, in descending order, in place of the scheduler's own."},
    "sigmas": {"help": "The noise levels to denoise at, in descending order, in place of the scheduler's own."},
    "attention_kwargs": {"help": "Settings for the attention processor."},
    "cross_attention_kwargs": {"help": "Settings for the attention processor."},
    "joint_attention_kwargs": {"help": "Settings for the attention processor."},
    "clean_caption": {"help": "Clean the prompt of HTML, links and odd punctuation first."},
    "audio_length_in_s": {"help": "The length of the sound in seconds."},
    "mu": {"help": "The timestep shift, in place of the one computed from the image size."},
    "do_patching": {"help": "Pack latents into patches of 2 x 2."},
    "clip_value": {"help": "Clip the guided noise to this absolute value."},
    "normalize": {"help": "Normalise the guided noise."},
}

# Media that some signatures annotate as bare tensors (or Any), although the pipeline's processor takes what the engine
# reads from a file: FluxFillPipeline.image, WanImageToVideoPipeline.last_image, StableAudioPipeline's waveforms, ...
# Not the video tensors of EasyAnimate: those must be laid out by hand.
UNTYPED_MEDIA: Mapping[str, str] = {
    "image": "image",
    "mask_image": "mask",
    "last_image": "image",
    "audio": "audio",
    "src_audio": "audio",
    "reference_audio": "audio",
    "initial_audio_waveforms": "audio",
}

# Media that a signature gives a default of None although the pipeline fails without them: by part of the class name.
REQUIRED_MEDIA: Mapping[str, tuple[str, ...]] = {
    "Adapter": ("image",),
    "Control": ("control_image",),
    "ControlNet": ("image", "conditioning_frames"),
    "Depth2Img": ("image",),
    "FluxFill": ("image", "mask_image"),
    "I2VGen": ("image",),
    "ImageToVideo": ("image",),
    "Img2Img": ("image",),
    "Inpaint": ("image", "mask_image", "control_mask"),
    "InstructPix2Pix": ("image",),
    "LongCatImageEdit": ("image",),
    "QwenImageEdit": ("image",),
    "QwenImageLayered": ("image",),
    "Upscale": ("image",),
    "VideoToVideo": ("video",),
    "VisualCloze": ("image",),
}

# Pipeline classes that a command line cannot call although their signatures look as if it could (diffusers 0.42, read
# in their source), and what stands in the way.
UNCALLABLE: Mapping[str, str] = {
    "EasyAnimateInpaintPipeline": "needs video, mask_video: tensors, laid out by hand",
    "LEditsPPPipelineStableDiffusion": "needs a call of its invert() first",
    "LEditsPPPipelineStableDiffusionXL": "needs a call of its invert() first",
    "LTX2DFRTemporalRefinePipeline": "needs latents, keyframes_latents, audio_latents, which LTX2DFRPipeline computes",
    "StableDiffusionDiffEditPipeline": (
        "needs calls of its generate_mask() and invert() first: stable-diffusion diffedit makes them"
    ),
    "VisualClozeGenerationPipeline": "needs rows of rows of pictures",
    "VisualClozePipeline": "needs rows of rows of pictures",
}
