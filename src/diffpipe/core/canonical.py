"""The one JSON text of a value, and its digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeAlias

# What JSON can hold, as the standard library reads it. Outside the walls that parse it, nothing passes it on.
JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Equal values always give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value's canonical JSON."""
    # Text from the command line may hold bytes that were no UTF-8, as lone surrogates.
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()
