"""Würstchen by Pablo Pernias and others."""

from __future__ import annotations

from ..rows import PipelineType, Provider
from ..shared_flags import PROMPT, QUIRKS, steps

WUERSTCHEN = Provider(
    name="wuerstchen",
    title="Würstchen by Pablo Pernias and others",
    homepage="https://huggingface.co/warp-ai",
    legacy=True,
    types=(
        PipelineType(
            "text2image",
            "WuerstchenCombinedPipeline",
            ("warp-ai/wuerstchen",),
            # Two compressions: 42.67 times by the prior, 4 by the decoder's. Whole in both from 128 on.
            flags={**PROMPT, **steps(128)},
            components={
                "prior_tokenizer": "warp-ai/wuerstchen-prior/tokenizer",
                "prior_text_encoder": "warp-ai/wuerstchen-prior/text_encoder",
                "prior_prior": "warp-ai/wuerstchen-prior/prior",
                "prior_scheduler": "warp-ai/wuerstchen-prior/scheduler",
            },
            quirks={"call": f"{QUIRKS}.wuerstchen:call_wuerstchen"},
        ),
    ),
)
