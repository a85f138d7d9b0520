"""The commands of a shell script, and the ones that run at the same time.

Source: POSIX.1-2024, Shell Command Language, 2.9 (pipelines, lists, asynchronous lists).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TypeAlias

Words: TypeAlias = tuple[str, ...]

_PUNCTUATION = ";&|()<>\n"
_COMMENT = re.compile(r"(?:^|(?<=[\s;]))#[^\n]*")
_LOOPS = frozenset({"for", "while", "until"})
_KEYWORDS = _LOOPS | {"if", "then", "elif", "else", "fi", "do", "done", "!"}
_NOT_FOLLOWED = frozenset({"case", "function", "select", "{", "}", "eval", "source", "."})


@dataclass
class Script:
    """The commands of a script in groups.

    The commands of a group run one after the other; the groups run at the same time.
    """

    foreground: list[Words] = field(default_factory=list)
    background: list[list[Words]] = field(default_factory=list)

    @property
    def groups(self) -> list[list[Words]]:
        """All groups, empty ones too."""
        return [self.foreground, *self.background]


def read_script(text: str) -> Script | None:
    """Return the commands of a script; None if it cannot be followed.

    Functions, cases, groups and subshells are not followed, nor a loop that starts commands in
    the background: the text does not show how many.
    """
    lexer = shlex.shlex(
        _COMMENT.sub("", text.replace("\\\n", " ")), posix=True, punctuation_chars=_PUNCTUATION
    )
    lexer.commenters, lexer.whitespace, lexer.whitespace_split = "", " \t\r", True
    try:
        tokens = list(lexer)
    except ValueError:
        return None
    if any(
        token in _NOT_FOLLOWED or "`" in token or "$(" in token or token.endswith("$")
        for token in tokens
    ):
        return None
    script, pending, words = Script(), list[Words](), list[str]()
    skip = False
    for token in [*tokens, ";"]:
        is_operator = bool(token) and not set(token) - set(_PUNCTUATION)
        if skip or not is_operator:
            # The word after < or > is a file.
            words += [] if skip else [token]
            skip = False
        elif "(" in token or ")" in token:
            return None
        elif "<" in token or ">" in token:
            skip = True
        else:
            while words and words[0] in _KEYWORDS:
                words = [] if words[0] == "for" else words[1:]
            pending += [tuple(words)] if words else []
            words = []
            # The operator decides where the pending commands go.
            rest = token.replace("\n", ";").replace("&&", "").replace("||", "")
            if "|" in rest or "&" in rest:
                # A pipe starts its last command alone, & starts them all.
                started = pending[-1:] if "|" in rest else pending
                script.background.append(started)
                pending = pending[: len(pending) - len(started)]
            elif ";" in rest and "&&" not in token and "||" not in token:
                script.foreground += pending
                pending = []
    return None if script.background and _LOOPS & set(tokens) else script
