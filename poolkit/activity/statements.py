"""What a statement of another program may show: no literals, no control characters, its comment.

`pg_stat_activity` has the text as the client sent it, so it can hold passwords and personal data. It
is cut at `track_activity_query_size`, so a literal or a comment may have no end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import unquote

from poolkit.masking import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\* )
    | (?P<literal>
        [eE]'(?:[^'\\]|\\.|'')*(?:'|\\?\Z)
        | (?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?:'|\Z)
        | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)
        | (?:\d[\w.]*(?:(?<=[eE])[+-]\d+)?|\.\d[\w.]*)
      )
    | (?P<other> [uU]&"(?:[^"]|"")*(?:"|\Z) | "(?:[^"]|"")*(?:"|\Z) | [^\W\d][\w$]* | \$\d+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
"""PostgreSQL 4.1, "Lexical Structure". A block comment may have others in it, so its end is counted."""
_ENDS = re.compile(r"/\*|\*/")
_LIST = re.compile(r"\?(?:\s*,\s*\?)+")
_PAIR = re.compile(r"((?:[^\s=,'\\]|\\.)+)\s*=\s*'((?:[^'\\]|\\.)*)'", re.DOTALL)

Kind = Literal["comment", "literal", "other"]


class _Token(NamedTuple):
    kind: Kind
    text: str


def _tokens(statement: str) -> Iterator[_Token]:
    at = 0
    while found := _TOKEN.match(statement, at):
        kind: Kind = found.lastgroup if found.lastgroup != "tag" else "literal"  # type: ignore[assignment]
        end = found.end()
        if found[0] == "/*":
            depth = 1
            for mark in _ENDS.finditer(statement, end):
                depth += 1 if mark[0] == "/*" else -1
                end = mark.end()
                if not depth:
                    break
            else:
                end = len(statement)
        yield _Token(kind, statement[at:end])
        at = end


def shown(statement: str) -> str:
    """Return a statement on one line, with `?` for each literal and without comments.

    `SELECT * FROM t WHERE id IN (1, 2) AND name = 'x'` is shown as
    `SELECT * FROM t WHERE id IN (?, ...) AND name = ?`. Names and parameters (`$1`) stay.
    """
    parts = []
    for token in _tokens(statement):
        if token.kind == "literal":
            parts.append("?")
            # With standard_conforming_strings off, \' does not end the literal: where it begins and
            # ends is then not known, so the rest is left out.
            if "\\'" in token.text and token.text[0] not in "eE$":
                parts.append(" ...")
                break
        else:
            parts.append(" " if token.kind == "comment" else token.text)
    return _LIST.sub("?, ...", printable("".join(parts), one_line=True))


def comment_of(statement: str) -> dict[str, str]:
    """Return the keys and values of a statement's last comment, if it is one of SQLCommenter.

    The format is that of <https://open-telemetry.github.io/opentelemetry-sqlcommenter/specifications>:
    keys and values are URL-encoded, with a backslash before a quote. Of a comment that the server has
    cut, the complete pairs are returned.
    """
    comments = [t.text for t in _tokens(statement) if t.kind == "comment" and t.text[0] == "/"]
    if not comments:
        return {}
    pairs = _PAIR.findall(comments[-1][2:])
    return {_decoded(key): _decoded(value) for key, value in pairs}


def _decoded(text: str) -> str:
    plain = unquote(re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL))
    return printable(plain, one_line=True)
