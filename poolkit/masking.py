r"""Text for people and files: secrets masked, control characters made visible.

    masked("postgresql://app:s3cret@db/shop?sslpassword=x")  # postgresql://app:***@db/shop?sslpassword=***
    printable("a\x1b[31mb")  # a?[31mb

Everything that poolkit prints or writes and that may contain a URL, a command line or a program's
output goes through these two. If a text is ambiguous, `masked` hides too much rather than too
little.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ("MASK", "masked", "printable")

MASK: Final = "***"

# A URL's scheme in a text. Only http's user names are tokens as a rule, such as a forge's.
_SCHEME = re.compile(r"(?<![\w+.-])([A-Za-z][A-Za-z0-9+.-]*)://")
# What a host, a port and the beginning of a path or a query look like, after the last @.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]*\]|[\w.%*{}-]*)(?::[\w{}-]*)?(?=[/?#,;\s'\"`)>\]]|$)")
_NAME = r"(?:[\w.-]{0,40}(?:password|passwd|passphrase|pwd|secret|token|api_?key|access_?key))"
_PARAMETER = re.compile(rf"(?i)[?&;]{_NAME}=")
_VALUE = re.compile(r"[^&#\s'\"`]*")
_QUERY = re.compile(rf"(?i)([?&;]{_NAME}=)({_VALUE.pattern})")
# libpq's `password=x` or `password='a b'`, an environment's PGPASSWORD=x, JSON's "password": "x".
_ASSIGNED = re.compile(
    rf"""(?ix) (["']? {_NAME} ["']? \s* (?: = | (?<=["']) \s* : ) \s*)"""
    r"""( "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | [^\s&,;'"]+ )"""
)
_OPTION = re.compile(rf"(?i)((?:^|\s)--?{_NAME}[ ])([^\s-]\S*)")


def masked(text: str) -> str:
    """Return a text in which passwords and tokens are replaced by `***`.

    Masked are the password of every URL, whatever characters it has; the parameters of URLs, the
    members of libpq's connection strings, variables and JSON members whose name ends with password,
    passwd, pwd, secret, token or key, such as `sslpassword` and `PGPASSWORD`; and the user of an
    http URL without a password, because it may be a token. A value of only `*` and a `{{placeholder}}` stay.

    Args:
        text: of any length and number of lines.
    """
    found = list(_SCHEME.finditer(text))
    parts, end = [], 0
    for number, match in enumerate(found):
        begin = match.end()
        if begin < end:  # inside the password of the URL before
            continue
        stop = found[number + 1].start() if number + 1 < len(found) else len(text)
        login_end = _end_of_login(text, match[1].lower(), begin, stop)
        if login_end is None:
            continue
        user, _, password = text[begin:login_end].partition(":")
        if password and not _is_placeholder(password):
            shown = f"{user}:{MASK}"
        elif match[1].lower().startswith("http") and not password:
            shown = MASK
        else:
            continue
        parts += [text[end:begin], shown]
        end = login_end
        # The @ may have been that of a secret parameter, whose rest must not stay.
        for name in _PARAMETER.finditer(text, begin, login_end):
            end = max(end, _VALUE.match(text, name.end()).end())  # type: ignore[union-attr]
    text = "".join([*parts, text[end:]])
    text = _QUERY.sub(_mask_value, text)
    text = _ASSIGNED.sub(_mask_value, text)
    return _OPTION.sub(_mask_value, text)


def _end_of_login(text: str, scheme: str, begin: int, stop: int) -> int | None:
    """Return the index of the @ that ends user and password, or None if the URL has neither.

    A password that nobody has escaped may contain anything. So the last @ counts that a host could
    follow: within the URL's word, or for another scheme than http within its quotes or its line.
    """
    line_end = _first(text, "\r\n", begin, stop)
    quote = text[begin - len(scheme) - 4 : begin - len(scheme) - 3]
    if quote and quote in "'\"`":
        line_end = _first(text, quote, begin, line_end)
    word_end = _first(text, " \t", begin, line_end)
    for limit in (word_end,) if scheme.startswith("http") else (word_end, line_end):
        at = text.rfind("@", begin, limit)
        while at >= 0:
            if _HOST.match(text, at + 1, min(len(text), limit)):
                return at
            at = text.rfind("@", begin, at)
    return None


def _first(text: str, characters: str, begin: int, end: int) -> int:
    found = (text.find(character, begin, end) for character in characters)
    return min((index for index in found if index >= 0), default=end)


def _is_placeholder(value: str) -> bool:
    return value.startswith("{{") and value.endswith("}}")


def _mask_value(match: re.Match[str]) -> str:
    value = match[2].strip("'\"")
    if not value.strip("*") or _is_placeholder(value):
        return match[0]
    quote = match[2][0] if match[2][0] in "'\"" else ""
    return f"{match[1]}{quote}{MASK}{quote}"


# C0 except newline and tab, DEL, C1 (whose 9B begins a sequence as ESC [ does), the two separators
# that some readers take for a new line, and the marks that change the direction of writing.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, *, one_line: bool = False) -> str:
    """Return a text whose control characters are question marks, so that a terminal obeys none.

    A question mark, because it has the width of a column in every encoding.

    Args:
        text: such as a file's name, or a message of another program.
        one_line: newlines and tabs become spaces.
    """
    text = _CONTROL.sub("?", text)
    return " ".join(text.split()) if one_line else text
