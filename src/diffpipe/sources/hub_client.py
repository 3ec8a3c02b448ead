"""Requests to the model hub by its client's session, with its endpoint, proxies and time-outs, and the user's token.

huggingface_hub is imported only when a function is called.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core import access_tokens
from ..core.errors import AccessError
from ..core.parsing import Misfit

if TYPE_CHECKING:
    from httpx2 import Response

# The client would add a request about the program that runs it to the first one: nothing is sent but what is asked for.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

OFFLINE = ("DIFFPIPE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # variables
TRUE = {"1", "on", "yes", "true"}  # as huggingface_hub reads its own variables


def token() -> str | None:
    """The token of the environment's first variable that has one, or what `hf auth login` saved.

    Raises AccessError if it has characters no token has (a header cannot carry them).
    """
    from huggingface_hub import get_token

    found = access_tokens.from_environment() or get_token()
    if found and not re.fullmatch(r"[!-~]+", found):
        raise AccessError("the access token has spaces or letters that no token has", "copy it again into HF_TOKEN")
    return found


def is_offline(flag: bool) -> bool:
    """Whether --offline, DIFFPIPE_OFFLINE or the hub client's own variables forbid the network."""
    return flag or any(os.environ.get(name, "").lower() in TRUE for name in OFFLINE)


def reachable() -> bool:
    """Whether the hub answers at all (one request; about ten seconds at most)."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        url = f"{constants.ENDPOINT}/api/models"
        return get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT).status_code < 500
    except (HTTPError, InvalidURL, OfflineModeIsEnabled):
        return False


def page(repo: str) -> str:
    """The address of a repository."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def body(url: str, secret: str | None, most: int) -> bytes:
    """What an address answers. Raises the client's errors, and Misfit for more than `most` bytes."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = build_hf_headers(token=secret or False)
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_ETAG_TIMEOUT) as response:
        hf_raise_for_status(response)
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > most:
                raise Misfit(f"the hub's answer is larger than {most} bytes")
    return bytes(data)


@contextmanager
def content(repo: str, commit: str, path: str, secret: str | None, asked: str) -> Iterator[Response]:
    """The answer that brings the bytes of a file that are `asked` for (a Range header; "" for all of them).

    Status 416 is the caller's to read; other refusals raise the client's errors.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    # Compressed bodies cannot be resumed.
    headers = build_hf_headers(token=secret or False, headers={"Accept-Encoding": "identity"})
    if asked:
        headers["Range"] = asked
    url = hf_hub_url(repo, path, revision=commit)
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code != 416:
            hf_raise_for_status(response)
        yield response
