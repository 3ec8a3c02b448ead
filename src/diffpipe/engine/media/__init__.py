"""Pictures, video and sound: read from the user's files, written with their settings inside."""

from .encode import AUDIO
from .pixels import Note
from .read import Clip, Sound, read_audio, read_image, read_video, resample
from .text import KEYS, read_text
from .url import publish_at, write_at
from .write import IMAGE, SILENT, VIDEO, finite, publish, write_audio, write_image, write_video

__all__ = [
    "AUDIO",
    "IMAGE",
    "KEYS",
    "SILENT",
    "VIDEO",
    "Clip",
    "Note",
    "Sound",
    "finite",
    "publish",
    "publish_at",
    "read_audio",
    "read_image",
    "read_text",
    "read_video",
    "resample",
    "write_at",
    "write_audio",
    "write_image",
    "write_video",
]
