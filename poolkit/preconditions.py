"""Preconditions of a request (RFC 9110, section 13): `If-Match`, against lost updates."""

from __future__ import annotations

import re

__all__ = ("matches",)

# One entity tag or none, up to the next comma (RFC 9110, 8.8.3 and 5.6.1). A comma inside the
# quotes belongs to the tag.
_MEMBER = re.compile(r'[ \t]*(?:(W/)?("[!#-~\x80-\xff]*"))?[ \t]*(?:,|$)')


def matches(if_match: str, etag: str) -> bool:
    """Return whether a request with this `If-Match` may change what has this ETag.

        if request_has_the_header and not matches(value, f'"{article.version}"'):
            ...  # 412 Precondition Failed

    The comparison is the strong one (RFC 9110, 8.8.3.2): a weak tag, `W/"1"`, never matches. `*`
    matches whatever exists. A malformed header matches nothing, so nothing is overwritten.

    Args:
        if_match: the header's value; several lines of it are joined by commas.
        etag: the current strong entity tag, with its quotes.
    """
    if if_match.strip(" \t") == "*":
        return True
    position, found = 0, False
    while position < len(if_match):
        member = _MEMBER.match(if_match, position)
        if member is None:
            return False
        found = found or (member[2] == etag and not member[1])
        position = member.end()
    return found
