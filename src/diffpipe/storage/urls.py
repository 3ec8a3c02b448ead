"""What a URL says: which file it means, what of it lasts, and what of it may be shown.

A URL may hold credentials: what is shown, logged, noted or written of one is what `shown` leaves of it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C: is a drive
# Schemes are short: without a bound, a long word of a hostile text is read from each of its letters to its end.
IN_TEXT = re.compile(
    r"((?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,40}://)(?:[^\s/'\"]*@)?([^\s'\"?]*)(?:\?[^\s'\"]*)?"
)
# What pathlib makes of a URL, of whose slashes it takes one; SIGNED: a name that a URL's parameters came along with.
IN_PATH = re.compile(r"((?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,40}:/)[^\s/'\"]{0,500}@")
# Parameters that sign a URL (AWS, Google, Azure, CDNs): new ones do not make it another file.
SIGNING = re.compile(
    r"(?i)x-(amz|goog)-[^=&\s]{0,60}|signature|expires|key-pair-id|policy|awsaccesskeyid|googleaccessid"
    r"|sig|s[eiprtv]|sk(oid|tid|t|e|s|v)|spr|(access_|auth_)?token"
)
SIGNED = re.compile(rf"([?&](?:{SIGNING.pattern[4:]})=)[^\s&'\"]+", re.IGNORECASE)
DISK = ("file", "local")
LONGEST = 1024  # bytes of an object's name in S3, Google's store and Azure's


def is_url(text: str) -> bool:
    return "://" in text and SCHEME.match(text) is not None


def was_url(path: Path) -> bool:
    """Whether a path is what pathlib, which takes doubled slashes away, makes of a URL."""
    return is_url(re.sub(":/+", "://", str(path), count=1))


def split(url: str) -> tuple[str, str, str]:
    """Scheme, who and where (user, password, host; or bucket), and the path, its / before it."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return scheme, authority, slash + path


def shown(path: str) -> str:
    """A path, or a URL without credentials: no user, no password, and none of the parameters that may sign it."""
    if not is_url(path):
        return path
    scheme, authority, rest = split(path)
    return f"{scheme}://{authority.rpartition('@')[2]}{rest}".partition("?")[0]


def hidden(text: str) -> str:
    """A text of anybody's with every URL in it as `shown` leaves it, and no part of one that tells more."""
    if "://" in text:
        text = IN_TEXT.sub(r"\1\2", text)
    text = IN_PATH.sub(r"\1", text) if "@" in text else text
    return SIGNED.sub(r"\1…", text) if "=" in text else text


def lasting(value: object) -> object:
    """What of a call argument says which file it is: a URL without its user and what signs it; all else as it is."""
    if isinstance(value, list):
        return [lasting(one) for one in value]
    if not isinstance(value, str) or not is_url(value):
        return value
    scheme, authority, rest = split(value)
    path, _, query = rest.partition("?")
    own = [one for one in query.split("&") if one and not SIGNING.fullmatch(one.partition("=")[0])]
    return f"{scheme}://{authority.rpartition('@')[2]}{path}{'?' if own else ''}{'&'.join(own)}"


def same_store(url: str, like: str) -> bool:
    """Whether two URLs are of one server or bucket, whoever asks it."""
    (scheme, authority, _), (other, host, _) = split(url), split(like)
    return (scheme.lower(), authority.rpartition("@")[2]) == (other.lower(), host.rpartition("@")[2])


def with_credentials(url: str, like: str) -> str:
    """A URL as `shown`, with the user and password of another one at the same place."""
    scheme, authority, path = split(url)
    of, other, _ = split(like)
    user, at, host = other.rpartition("@")
    return f"{scheme}://{user}{at}{authority}{path}" if (of, host) == (scheme, authority) else url


def on_disk(url: str) -> str | None:
    """The absolute path that a file:// URL means, None for a URL of another kind."""
    scheme, authority, path = split(url)
    if scheme.lower() not in DISK:
        return None
    place = authority + path
    return os.path.abspath(os.path.expanduser(place[1:] if re.match(r"/[A-Za-z]:", place) else place))


def normal(url: str) -> str:
    """A URL without . and .. and doubled slashes; a file's is absolute."""
    if place := on_disk(url):
        return f"file://{'' if place.startswith('/') else '/'}{Path(place).as_posix()}"
    scheme, authority, path = split(url)
    return f"{scheme}://{authority}{posixpath.normpath('/' + path.lstrip('/'))}"


def beside(path: str, mark: str) -> str:
    """A path or URL with a mark after the file's name: out/x.png, 2 -> out/x-2.png."""
    stem, ending = os.path.splitext(path)
    return f"{stem}-{mark}{ending}"
