"""Requests to the model hub by its client's session, with its endpoint, proxies and time-outs, and the user's token.

huggingface_hub is imported only when a function is called.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core import access_tokens
from ..core.errors import AccessError, DiffpipeError, UsageError
from ..core.parsing import Misfit
from ..storage import http_guard
from ..storage.disk import reason, shortened
from ..storage.urls import hidden
from . import hub_seam

if TYPE_CHECKING:
    from pathlib import Path

    from httpx2 import Client, Response
    from huggingface_hub.utils.tqdm import tqdm

# The client would add a request about the program that runs it to the first one: nothing is sent but what is asked for.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

OFFLINE = ("DIFFPIPE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # variables
TRUE = {"1", "on", "yes", "true"}  # as huggingface_hub reads its own variables
WAITS = ("Retry-After", "RateLimit")  # headers for whose seconds the hub's client would sleep, however many
LONGEST_LISTING = 600.0  # seconds until a listing is there; a megabyte of it is much


def session() -> Client:
    """The session of the hub's client, whose answers are held to the limits of storage/http_guard.py."""
    from huggingface_hub import get_session

    _guard_client()
    return get_session()


@functools.cache
def _guard_client() -> None:
    """Have the client make its sessions so, also those that it makes after a fork or a failure; and have what it logs,
    which may be a hub's words, go where our log goes and not to the terminal."""
    from huggingface_hub import set_client_factory

    set_client_factory(_new_client)
    logger = logging.getLogger("huggingface_hub")
    for handler in [one for one in logger.handlers if type(one) is logging.StreamHandler]:
        logger.removeHandler(handler)


def _new_client() -> Client:
    try:
        client = http_guard.guard(hub_seam.new_client())
    except (ImportError, ValueError) as error:  # of a proxy's kind
        raise UsageError(
            f"the proxy of the environment cannot be used: {hidden(reason(error))[:200]}",
            "set HTTPS_PROXY to an http:// address, or NO_PROXY=* for none",
        ) from None
    client.event_hooks["response"].append(_drop_waits)
    return client


def _drop_waits(response: Response) -> None:
    for name in WAITS:
        response.headers.pop(name, None)


def token() -> str | None:
    """The token of the environment's first variable that has one, or what `hf auth login` saved.

    Raises AccessError if it has characters no token has (a header cannot carry them).
    """
    from huggingface_hub import get_token

    found = access_tokens.from_environment() or get_token()
    if found and not re.fullmatch(r"[!-~]+", found):
        raise AccessError("the access token has spaces or letters that no token has", "copy it again into HF_TOKEN")
    return found


def bring_by_xet(repo: str, commit: str, path: str, secret: str | None, target: Path, size: int, bar: tqdm) -> bool:
    """Have the hub's client bring a file of `size` bytes by Xet; whether the hub has it so. Raises its errors.

    Where the file goes is said here: the client alone would name it by what the answer's headers say.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    session()  # which its requests are made in
    metadata = get_hf_file_metadata(hf_hub_url(repo, path, revision=commit), token=secret or False)
    found = metadata.xet_file_data
    # Where its tokens are asked for gets the user's.
    if found is None or not found.refresh_route.startswith(f"{constants.ENDPOINT}/"):
        return False
    try:
        hub_seam.xet_get(found, target, size, build_hf_headers(token=secret or False), bar)
    except (OSError, RuntimeError, ValueError) as error:
        raise DiffpipeError(
            f"Xet did not bring {shortened(path)} of {repo}: {reason(error)[:200]}", "run the same command again"
        ) from error
    return True


def is_offline(flag: bool) -> bool:
    """Whether --offline, DIFFPIPE_OFFLINE or the hub client's own variables forbid the network."""
    return flag or any(os.environ.get(name, "").lower() in TRUE for name in OFFLINE)


def reachable() -> bool:
    """Whether the hub answers at all (one request; about ten seconds at most)."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        url = f"{constants.ENDPOINT}/api/models"
        return session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT).status_code < 500
    except (HTTPError, InvalidURL, OfflineModeIsEnabled, TimeoutError, UnicodeError, UsageError):
        return False


def page(repo: str) -> str:
    """The address of a repository."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def body(url: str, secret: str | None, most: int) -> bytes:
    """What an address answers. Raises the client's errors, Misfit for more than `most` bytes, and TimeoutError."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = build_hf_headers(token=secret or False)
    began = time.monotonic()
    with session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_ETAG_TIMEOUT) as response:
        hf_raise_for_status(response)
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if time.monotonic() - began > LONGEST_LISTING:
                raise TimeoutError(f"its listing takes longer than {LONGEST_LISTING:.0f} seconds")
            if len(data) > most:
                raise Misfit(f"the hub's answer is larger than {most} bytes")
    return bytes(data)


@contextmanager
def content(repo: str, commit: str, path: str, secret: str | None, asked: str) -> Iterator[Response]:
    """The answer that brings the bytes of a file that are `asked` for (a Range header; "" for all of them).

    Status 416 is the caller's to read; other refusals raise the client's errors.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    # Compressed bodies cannot be resumed.
    headers = build_hf_headers(token=secret or False, headers={"Accept-Encoding": "identity"})
    if asked:
        headers["Range"] = asked
    url = hf_hub_url(repo, path, revision=commit)
    with session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code != 416:
            hf_raise_for_status(response)
        yield response
