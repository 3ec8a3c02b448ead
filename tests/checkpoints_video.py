"""Tiny checkpoints of the families that make video and sound: see checkpoints.py, which writes these too.

The ratios are the released models': so many pixels and frames to a latent, so many samples to a mel frame.
"""

from __future__ import annotations

import string

import torch
from checkpoints import (
    TEXT_WIDTH,
    Maker,
    t5_text_encoder,
    t5_tokenizer,
    vary,
)
from checkpoints_image import saved
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    AutoencoderKLAllegro,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

LETTERS = string.ascii_letters + string.digits + string.punctuation


# --- Wan -------------------------------------------------------------------------------------------------------------


def umt5_text_encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return vary(UMT5EncoderModel(config))


def wan_autoencoder() -> AutoencoderKLWan:
    """8 x 8 pixels and 4 frames (but 1 for the first) to a latent of 16 channels."""
    return vary(AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1))


WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": TEXT_WIDTH,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 128,
}
# The latents, those of the picture and a mask of 4 channels: one for each frame of a latent.
WAN_IMAGE_CHANNELS = 16 + 16 + 4


def wan_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan_pipeline() -> DiffusionPipeline:
    """Wan 2.1: WanVideoToVideoPipeline loads from it too."""
    return WanPipeline(**_wan_parts(), transformer=vary(WanTransformer3DModel(**WAN)))


def wan22_pipeline() -> DiffusionPipeline:
    """Wan 2.2: one denoiser for the noisy steps, another for the last of them."""
    return WanPipeline(
        **_wan_parts(),
        transformer=vary(WanTransformer3DModel(**WAN)),
        transformer_2=vary(WanTransformer3DModel(**WAN)),
        boundary_ratio=0.875,
    )


def wan_image_to_video_pipeline() -> DiffusionPipeline:
    """Wan 2.1: the picture is read by an image encoder too."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    transformer = WanTransformer3DModel(**WAN, in_channels=WAN_IMAGE_CHANNELS, image_dim=32, added_kv_proj_dim=24)
    return WanImageToVideoPipeline(
        **_wan_parts(),
        transformer=vary(transformer),
        image_encoder=vary(CLIPVisionModel(vision)),
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32),
    )


def wan22_image_to_video_pipeline() -> DiffusionPipeline:
    """Wan 2.2: two denoisers, no image encoder."""
    return WanImageToVideoPipeline(
        **_wan_parts(),
        transformer=vary(WanTransformer3DModel(**WAN, in_channels=WAN_IMAGE_CHANNELS)),
        transformer_2=vary(WanTransformer3DModel(**WAN, in_channels=WAN_IMAGE_CHANNELS)),
        boundary_ratio=0.9,
    )


def wan_vace_pipeline() -> DiffusionPipeline:
    return WanVACEPipeline(**_wan_parts(), transformer=vary(WanVACETransformer3DModel(**WAN, vace_layers=[0])))


def _wan_parts() -> dict[str, object]:
    tokenizer = t5_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": umt5_text_encoder(tokenizer),
        "vae": wan_autoencoder(),
        "scheduler": wan_scheduler(),
    }


# --- Allegro ---------------------------------------------------------------------------------------------------------


def allegro_pipeline() -> DiffusionPipeline:
    """8 x 8 pixels and 4 frames to a latent. 320 x 320 pixels and 24 frames unless told otherwise: the least there is,
    as the autoencoder's one tile has that size."""
    tokenizer = t5_tokenizer()
    vae = AutoencoderKLAllegro(block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=2,
        cross_attention_dim=48,
        sample_width=40,
        sample_height=40,
        sample_frames=6,
        caption_channels=TEXT_WIDTH,
    )
    return AllegroPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text_encoder(tokenizer),
        vae=vary(vae),
        transformer=vary(transformer),
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    )


# --- LTX -------------------------------------------------------------------------------------------------------------


def ltx_pipeline() -> DiffusionPipeline:
    """32 x 32 pixels and 8 frames (but 1 for the first) to a latent."""
    tokenizer = t5_tokenizer()
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        decoder_inject_noise=(True, False, False, False, False),  # drawn from torch's own generator
    )
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    )
    return LTXPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text_encoder(tokenizer),
        vae=vary(vae),
        transformer=vary(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
    )


def gemma_tokenizer() -> GemmaTokenizer:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{code:02X}>" for code in range(256)), "▁", *LETTERS]
    return GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=1024)


def gemma_text_encoder(tokenizer: GemmaTokenizer) -> Gemma3ForConditionalGeneration:
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 16,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
    )
    return vary(Gemma3ForConditionalGeneration(config))


def ltx2_pipeline() -> DiffusionPipeline:
    """32 x 32 pixels and 8 frames to a latent; stereo sound of 24 kHz. LTX2ImageToVideoPipeline loads from it too."""
    tokenizer = gemma_tokenizer()
    text_encoder = gemma_text_encoder(tokenizer)
    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=64, latent_channels=2, mel_bins=16
    )
    transformer = LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=8,  # 2 latent channels of 4 mel bins
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    )
    connectors = LTX2TextConnectors(
        caption_channels=TEXT_WIDTH,
        text_proj_in_factor=3,  # the states before and after each of 2 layers
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        connector_rope_base_seq_len=64,
    )
    vocoder = LTX2Vocoder(
        in_channels=2 * 16,  # stereo, 16 mel bins
        hidden_channels=32,
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return LTX2Pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vary(vae),
        audio_vae=vary(audio_vae),
        transformer=vary(transformer),
        connectors=vary(connectors),
        vocoder=vary(vocoder),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
    )


# --- AudioLDM --------------------------------------------------------------------------------------------------------


def roberta_tokenizer() -> RobertaTokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *LETTERS]
    return RobertaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def clap_text_config(tokenizer: RobertaTokenizer) -> ClapTextConfig:
    return ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=TEXT_WIDTH,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def vocoder() -> SpeechT5HifiGan:
    """160 samples of 16 kHz to a mel frame of 16 bins."""
    config = SpeechT5HifiGanConfig(
        model_in_dim=16,
        sampling_rate=16000,
        upsample_initial_channel=32,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]],
        normalize_before=False,
    )
    model = SpeechT5HifiGan(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the weights it starts with make a sound too soft to hear
                parameter.normal_(std=1.4 * parameter[0].numel() ** -0.5)
    return vary(model)


def mel_autoencoder() -> AutoencoderKL:
    """4 x 4 values of the spectrogram to a latent of 8 channels."""
    model = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 16],
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=8,
    )
    return vary(model)


def audio_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def audioldm_pipeline() -> DiffusionPipeline:
    """A sound of 0.64 seconds at 16 kHz unless told otherwise."""
    tokenizer = roberta_tokenizer()
    denoiser = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(8, 16),
        attention_head_dim=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=TEXT_WIDTH,
        class_embeddings_concat=True,
    )
    return AudioLDMPipeline(
        vae=mel_autoencoder(),
        text_encoder=vary(ClapTextModelWithProjection(clap_text_config(tokenizer))),
        tokenizer=tokenizer,
        unet=vary(denoiser),
        scheduler=audio_scheduler(),
        vocoder=vocoder(),
    )


def audioldm2_pipeline() -> DiffusionPipeline:
    """A sound of 0.64 seconds at 16 kHz unless told otherwise."""
    tokenizer, tokenizer_2 = roberta_tokenizer(), t5_tokenizer()
    clap = ClapConfig(
        text_config=clap_text_config(tokenizer).to_dict(),
        audio_config={
            "hidden_size": 32,
            "patch_embeds_hidden_size": 4,
            "depths": [1, 1],
            "num_attention_heads": [1, 1],
            "num_hidden_layers": 2,
            "spec_size": 32,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "num_mel_bins": 16,
            "window_size": 4,
        },
        projection_dim=TEXT_WIDTH,
    )
    language_model = GPT2Config(
        vocab_size=99, n_embd=16, n_layer=2, n_head=2, n_positions=64, max_new_tokens=8, bos_token_id=0, eos_token_id=0
    )
    denoiser = AudioLDM2UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=([None, 16, TEXT_WIDTH], [None, 16, TEXT_WIDTH]),
        attention_head_dim=4,
    )
    return AudioLDM2Pipeline(
        vae=mel_autoencoder(),
        text_encoder=vary(ClapModel(clap)),
        tokenizer=tokenizer,
        text_encoder_2=t5_text_encoder(tokenizer_2),
        tokenizer_2=tokenizer_2,
        projection_model=vary(
            AudioLDM2ProjectionModel(text_encoder_dim=TEXT_WIDTH, text_encoder_1_dim=TEXT_WIDTH, langauge_model_dim=16)
        ),
        language_model=vary(GPT2LMHeadModel(language_model)),
        feature_extractor=ClapFeatureExtractor(feature_size=16),
        unet=vary(denoiser),
        scheduler=audio_scheduler(),
        vocoder=vocoder(),
    )


#: Rows for `checkpoints.write_all`.
MAKERS: tuple[Maker, ...] = tuple(
    (name, saved(make), what)
    for name, make, what in (
        ("wan", wan_pipeline, "WanPipeline folder, as of Wan 2.1"),
        ("wan22", wan22_pipeline, "WanPipeline folder with two denoisers, as of Wan 2.2"),
        ("wan-i2v", wan_image_to_video_pipeline, "WanImageToVideoPipeline folder, as of Wan 2.1"),
        ("wan22-i2v", wan22_image_to_video_pipeline, "WanImageToVideoPipeline folder, as of Wan 2.2"),
        ("wan-vace", wan_vace_pipeline, "WanVACEPipeline folder"),
        ("allegro", allegro_pipeline, "AllegroPipeline folder"),
        ("ltx", ltx_pipeline, "LTXPipeline folder"),
        ("ltx2", ltx2_pipeline, "LTX2Pipeline folder: video with sound"),
        ("audioldm", audioldm_pipeline, "AudioLDMPipeline folder"),
        ("audioldm2", audioldm2_pipeline, "AudioLDM2Pipeline folder"),
    )
)
