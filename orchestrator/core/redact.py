"""Credentials taken out of text before it is stored, logged, sent or shown.

What is taken out: passwords in URLs, what stands behind words such as `password=` and `token:`, and
the values of the environment's own secrets wherever they occur, as they are and percent-encoded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

HIDDEN = "***"
SHORTEST = 6
"""A shorter value of the environment would be found in ordinary words."""
_WORDS = (
    r"passw(?:or)?d|secret|token|api[_-]?key|access[_-]?key(?:[_-]?id)?|secret[_-]?key"
    r"|private[_-]?key|credentials?"
)
_SECRET_NAME = re.compile(rf"(?i)(?:{_WORDS})$")
# With one slash too: a URL that was taken for a path has lost the other.
_URL = re.compile(r"(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]*:/{1,2})([^\s/?#\"'<>]*)@")

# A password with an unescaped slash; what follows a port is a path and no password.
_SLASHED = re.compile(
    r"(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]*:/{1,2}[^\s/:@\"'<>]+:)(?!\d+/)"
    r"[^\s/@\"'<>]{0,200}/[^\s@\"'<>]{0,200}@"
)
_ASSIGNED = re.compile(
    rf"(?i)((?:passw(?:or)?d|(?<![a-z])(?:{_WORDS}))[\"']?[ \t]*[=:][ \t]*)"
    r"(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'<>\])}]+)"
)
_IN_A_QUERY = re.compile(r"(?<=[?&]password=)[^&]+")
_BEARER = re.compile(r"(?i)\b(bearer|authorization[\"']?\s*[=:]\s*[\"']?basic)\s+[^\s,;\"']+")


def redact(text: str, also: Iterable[str] = ()) -> str:
    """The text with *** in place of credentials; `also` are secrets that are known to the caller.

    Doing it again changes nothing.
    """
    secrets = set(also)
    for name, value in os.environ.items():
        found = [value] if _SECRET_NAME.search(name) else []
        if not found and "://" in value:
            found = passwords_of(value)
        secrets.update(secret for secret in found if len(secret) >= SHORTEST)
    for secret in sorted(secrets, key=len, reverse=True):
        for spelt in {secret, quote(secret, safe="")}:
            text = text.replace(spelt, HIDDEN)
    return redact_urls(_BEARER.sub(rf"\1 {HIDDEN}", text))


def redact_urls(text: str) -> str:
    """The text without the passwords of its URLs, before an @ or behind `password=`; a URL's user
    alone is hidden where it may be a token (https://TOKEN@host).
    """
    text = _SLASHED.sub(rf"\1{HIDDEN}@", _URL.sub(_userless, text))
    return _ASSIGNED.sub(_assigned, text)


def has_credentials(url: str) -> bool:
    """Whether a URL carries a password or a token: before an @, or behind `password=`."""
    return "://" in url and redact_urls(url) != url


def passwords_of(url: str) -> list[str]:
    """A URL's passwords as they are written and as they are meant; it may lack its scheme."""
    place = url.partition("://")[2] or url
    found = _IN_A_QUERY.findall(place)
    if not place.startswith("/"):  # a file's path may hold an @
        found.append(place.rpartition("@")[0].partition(":")[2])
    return [text for one in found if one for text in dict.fromkeys((one, unquote(one)))]


def _userless(match: re.Match[str]) -> str:
    scheme, user = match[1], match[2]
    name, colon, _ = user.partition(":")
    if colon:
        return f"{scheme}{name}:{HIDDEN}@"
    is_token = scheme.lower().rstrip("/") in ("http:", "https:")
    return f"{scheme}{HIDDEN if is_token and user else user}@"


def _assigned(match: re.Match[str]) -> str:
    value = match[2]
    mark = value[0] if value[0] in "\"'" else ""
    return f"{match[1]}{mark}{HIDDEN}{mark}"
