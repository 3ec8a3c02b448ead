"""The hub's access tokens: the variables that hold one, and texts with none in them."""

from __future__ import annotations

import os
import re

# In the order in which they count. The last is huggingface_hub's own older name for the first.
VARIABLES = ("HF_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LIKE_ONE = re.compile(r"\b(hf_|api_org_)\w{8,}|(?<=[Bb]earer )\S+")
SHORTEST = 4  # characters: anything shorter is no token, and stands in many a text


def from_environment() -> str:
    """The token that the first variable with one holds, "" without any."""
    return next((value for name in VARIABLES if (value := os.environ.get(name, "").strip())), "")


def redacted(text: str, *secrets: str | None) -> str:
    """A text without these secrets, the environment's tokens, and what looks like one, wherever it came from."""
    held = [os.environ.get(name, "").strip() for name in VARIABLES]
    for secret in (*secrets, *held):
        if secret and len(secret) >= SHORTEST:
            text = text.replace(secret, "[token]")
    return LIKE_ONE.sub("[token]", text)
