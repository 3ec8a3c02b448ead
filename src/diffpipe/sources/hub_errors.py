"""What the hub, its client and the disk of its cache say, as what is wrong and the command that mends it."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.access_tokens import redacted
from ..core.errors import AccessError, CacheError, DiffpipeError, NotFoundError
from ..core.parsing import Misfit
from ..storage.disk import is_full, readable, reason, shortened
from ..storage.urls import hidden
from .hub_cache import Repository, cached_commit, folder, root
from .hub_client import page

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

LONGEST_SAID = 10_000  # characters of an error, for --traceback and logs; a hub's words are among them
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
MISPLACED = (errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENOTEMPTY, errno.EINVAL)  # the last: UnfitFile


@contextmanager
def explained(repo: str, revision: str, path: str = "", secret: str | None = None) -> Iterator[None]:
    """Turn the errors of the hub's client into ours, with no token left in any of them."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise not_cached(repo, path) from error
    except HfHubHTTPError as error:
        raise _refused(error, repo, revision, path, secret) from error
    except (HTTPError, InvalidURL, TimeoutError, UnicodeError) as error:  # the last by a host's name that is none
        raise _unreachable(repo, revision, scrub(error, secret)) from error
    except (Misfit, json.JSONDecodeError) as error:
        raise DiffpipeError(
            "the answer did not come from a model hub",
            "check HF_ENDPOINT, a proxy or a network that asks you to sign in",
        ) from error


@contextmanager
def disk_explained(repo: str) -> Iterator[None]:
    """Say what a full or read-only disk means, and what lies where it cannot. Other errors pass: the hub client's own,
    and those of the system, which say nothing of the cache."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise CacheError(
                f"the disk of the hub's cache is full: {repo} did not fit",
                "free some space (`hf cache rm`) or set HF_HOME to a larger disk, then run this again: it resumes",
            ) from error
        if error.errno in UNWRITABLE:
            raise CacheError(
                f"the hub's cache cannot be written ({reason(error)})",
                "mend its permissions, or set HF_HOME to a folder of yours",
            ) from error
        if error.errno in MISPLACED:
            where = shortened(str(error.filename or root()))
            raise CacheError(
                f"the hub's cache is damaged: {where}: {reason(error)}", "remove that, or set HF_HOME to another folder"
            ) from error
        raise


def leads_out(repository: Repository, place: Path) -> CacheError:
    """What is to be removed is the link, and not what may be gigabytes of files."""
    ways = [part for part in (*reversed(place.parents), place) if folder(repository.repo) in part.parents]
    link = next((part for part in ways if part.is_symlink()), place)
    return CacheError(
        f"a link in the hub's cache leads out of its repository: {link}",
        "remove that link (not what it leads to), or set HF_HOME to another folder",
    )


# What is not there


def not_cached(repo: str, part: str = "") -> NotFoundError:
    what = f"{shortened(part)} of {repo}" if part else repo
    return NotFoundError(f"{what} is not in the cache, and offline is on", "run it once without --offline")


def not_listed(repository: Repository, path: str) -> NotFoundError:
    return NotFoundError(
        f"{repository.repo} has no file {shortened(path)} at {repository.commit[:7]}",
        f"see its files at {page(repository.repo)}/tree/{repository.commit}",
    )


# Downloads that went wrong


def no_room(repo: str, needed: int, free: int) -> CacheError:
    return CacheError(
        f"{repo} needs {readable(needed)} more on the disk of the hub's cache, where {readable(free)} are free",
        "free some space (`hf cache prune`, `hf cache rm`) or point HF_HOME to a folder on a larger disk",
    )


def damaged(repository: Repository, path: str) -> CacheError:
    return CacheError(
        f"the download of {shortened(path)} of {repository.repo} is damaged: its content is not what the hub announced",
        "run the same command again: it downloads that file anew",
    )


def cut(repository: Repository, path: str, done: int, cause: str) -> DiffpipeError:
    size, what = repository.files[path].size, f"{shortened(path)} of {repository.repo}"
    return DiffpipeError(
        f"the connection was cut at {readable(done)} of {readable(size)} of {what} ({cause})",
        "check your connection, then run the same command again: it resumes there",
    )


# Answers


def _unreachable(repo: str, revision: str, cause: str) -> DiffpipeError:
    from huggingface_hub import constants

    hint = f"check your connection and HF_ENDPOINT ({constants.ENDPOINT})"
    if cached_commit(repo, revision):
        hint += "; the cache holds a copy of it, which --offline would use"
    return DiffpipeError(f"the model hub cannot be reached ({cause or 'no answer'})", hint)


def _refused(error: HfHubHTTPError, repo: str, revision: str, path: str, secret: str | None) -> DiffpipeError:
    """What an HTTP status means. A hub answers 401 for what may be private, and names the rest by X-Error-Code
    (huggingface_hub.utils.hf_raise_for_status lists the codes)."""
    status, code = error.response.status_code, error.response.headers.get("X-Error-Code", "")
    cause, place = scrub(error, secret), page(repo)
    if status in (401, 403):
        return _forbidden(repo, status, code, (error.server_message or "").lower(), bool(secret))
    if code == "RevisionNotFound":
        return NotFoundError(f"{repo} has no revision {revision}", f"see its branches and tags at {place}/tree/main")
    if code == "EntryNotFound":
        return NotFoundError(f"{repo} has no file {shortened(path)} at {revision[:7]}", f"see its files at {place}")
    if status == 404:
        hint = "check the spelling, and that your token may read it" if secret else f"check the spelling; {_sign_in()}"
        return NotFoundError(f"there is no repository {repo} on the hub", hint)
    if status == 429:
        return DiffpipeError("the hub asks for fewer requests", "wait some minutes; a token (HF_TOKEN) allows more")
    if status >= 500:
        return _unreachable(repo, revision, f"it answers {status}")
    return DiffpipeError(f"the hub refused {repo}: {cause}", f"open {place} to see whether it is there")


def _forbidden(repo: str, status: int, code: str, said: str, signed_in: bool) -> AccessError:
    settings = page("settings/tokens")
    if signed_in and status == 401 and code != "GatedRepo":
        return AccessError("the hub does not accept the access token (wrong or expired)", f"make one at {settings}")
    if "disabled" in said:
        return AccessError(f"{repo} has been disabled on the hub", "name another repository")
    # A fine-grained token that lacks the permission for gated repositories gets the code of a licence not accepted.
    if code == "GatedRepo" and "fine-grained" not in said:
        extra = "" if signed_in else " with HF_TOKEN set or after `hf auth login`"
        hint = f"open {page(repo)}, accept the licence, then run this again{extra}"
        return AccessError(f"the licence of {repo} must be accepted first", hint)
    if status == 403:
        return AccessError(f"the access token may not read {repo}", f"give it that permission at {settings}")
    return AccessError(f"{repo} does not exist or is private", f"check the spelling; {_sign_in()}")


def _sign_in() -> str:
    return "if it is private, set HF_TOKEN or run `hf auth login`"


def scrub(error: BaseException, secret: str | None) -> str:
    """Take the token out of an error and of those behind it, which --traceback and logs print; its first line."""
    behind: BaseException | None = error
    while behind is not None:
        behind.args = tuple(_clean(value, secret) if isinstance(value, str) else value for value in behind.args)
        behind = behind.__cause__ or behind.__context__
    return shortened(reason(error).partition(" for url ")[0])


def _clean(text: str, secret: str | None) -> str:
    """A text without the token, what looks like one, and the queries of URLs, which sign addresses of files."""
    return hidden(redacted(text, secret))[:LONGEST_SAID]
