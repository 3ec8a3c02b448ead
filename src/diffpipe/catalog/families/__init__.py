"""The families, a module each, in the order in which they are listed.

Sources of their rows: the model repositories' cards and diffusers 0.42.
"""

from __future__ import annotations

from ..rows import PipelineType, Provider
from .allegro import ALLEGRO
from .amused import AMUSED
from .audioldm import AUDIOLDM
from .demo import DEMO
from .flux import FLUX, FLUX2
from .ltx import LTX
from .qwen import QWEN
from .stable_diffusion import STABLE_DIFFUSION
from .wan import WAN
from .wuerstchen import WUERSTCHEN
from .z_image import Z_IMAGE

CUSTOM = Provider(
    name="custom",
    title="Any diffusers folder or repository",
    homepage="https://huggingface.co/models?library=diffusers",
    types=(PipelineType("any", ""),),
)

IMAGE = (FLUX, FLUX2, QWEN, STABLE_DIFFUSION, AMUSED, WUERSTCHEN, Z_IMAGE)
VIDEO = (WAN, LTX, ALLEGRO)
AUDIO = (AUDIOLDM,)
PROVIDERS = (DEMO, *IMAGE, *VIDEO, *AUDIO, CUSTOM)
