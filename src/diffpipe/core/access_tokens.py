"""The hub's access tokens: the variables that hold one, and texts with none in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# In the order in which they count. The last is huggingface_hub's own older name for the first.
VARIABLES = ("HF_TOKEN", "HUGGINGFACE_HUB_ACCESS_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LIKE_ONE = re.compile(r"\b(hf_|api_org_)\w{8,}|(?<=[Bb]earer )\S+")
SHORTEST = 4  # characters: anything shorter is no token, and stands in many a text
# How variables are called that hold other secrets, and the least characters of one: "false" is none.
OTHERS = re.compile(r"(?i).*(secret|token|password|passwd|api_?key|access_key|account_key|storage_key)")
SHORTEST_OTHER = 8


def from_environment() -> str:
    """The token that the first variable with one holds, "" without any."""
    return next((value for name in VARIABLES if (value := os.environ.get(name, "").strip())), "")


def is_secret(variable: str) -> bool:
    """Whether a variable of the environment is called as one that holds a secret."""
    return variable in VARIABLES or OTHERS.fullmatch(variable) is not None


@contextmanager
def kept_back(*, unless: str) -> Iterator[None]:
    """An environment without secrets, for processes that are started meanwhile and outlive the need; names that begin
    with `unless` stay."""
    kept = {name: os.environ[name] for name in os.environ if is_secret(name) and not name.startswith(unless)}
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


def redacted(text: str, *secrets: str | None) -> str:
    """A text without these secrets, those of the environment, and what looks like a token, wherever it came from."""
    held = [os.environ.get(name, "").strip() for name in VARIABLES]
    held += [one for name, one in os.environ.items() if len(one) >= SHORTEST_OTHER and is_secret(name)]
    for secret in (*secrets, *held):
        if secret and len(secret) >= SHORTEST:
            text = text.replace(secret, "[token]")
    return LIKE_ONE.sub("[token]", text)
