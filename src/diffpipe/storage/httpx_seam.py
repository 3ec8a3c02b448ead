"""What is used of httpx2 that its documentation does not promise (2.16); a test holds the names.

Without it, the headers of an answer could be dragged out without end: the time-outs of httpx2 are for one read each.
httpcore2 documents network backends, and httpx2 passes none on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from httpcore2 import NetworkBackend
    from httpx2 import Client


def replace_backends(client: Client, wrapped: Callable[[NetworkBackend], object]) -> None:
    """Have a client make its connections, those to proxies too, through `wrapped` of what makes them now.

    A transport without a pool of connections (a test's) makes none.
    """
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = wrapped(pool._network_backend)
