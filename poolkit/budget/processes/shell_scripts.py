"""Which commands a line of shell starts, and which of them run at the same time.

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
    """The commands of a script in groups: those of one run one after the other.

    The groups themselves run beside each other.
    """

    foreground: list[Words] = field(default_factory=list)
    beside: list[list[Words]] = field(default_factory=list)

    @property
    def groups(self) -> list[list[Words]]:
        """All groups, empty ones too."""
        return [self.foreground, *self.beside]

    @property
    def commands(self) -> list[Words]:
        """All commands, in no order."""
        return [command for group in self.groups for command in group]


def read_script(text: str) -> Script | None:
    """Return the commands of a script; None where its way cannot be followed.

    Functions, cases, groups and subshells are not followed, and no loop that starts something
    in the background: how often it does so is not to be seen.
    """
    tokens = _tokens(text)
    if tokens is None or any(_NOT_FOLLOWED & {word} or _substitutes(word) for word in tokens):
        return None
    script, pending, words = Script(), list[Words](), list[str]()
    skip = False
    for token in [*tokens, ";"]:
        if skip or not _is_operator(token):
            # What follows < or > is a file.
            words += [] if skip else [token]
            skip = False
        elif "(" in token or ")" in token:
            return None
        elif "<" in token or ">" in token:
            skip = True
        else:
            pending = _ended(script, pending, _command(words), token)
            words = []
    return None if script.beside and _LOOPS & set(tokens) else script


def _ended(script: Script, pending: list[Words], command: Words, operator: str) -> list[Words]:
    """Put a command where its operator wants it; return what of its list goes on."""
    pending = [*pending, command] if command else pending
    rest = operator.replace("\n", ";").replace("&&", "").replace("||", "")
    if "|" in rest:
        script.beside.append(pending[-1:])
        return pending[:-1]
    if "&" in rest:
        script.beside.append(pending)
        return []
    if ";" in rest and not ("&&" in operator or "||" in operator):
        script.foreground += pending
        return []
    return pending


def _command(words: list[str]) -> Words:
    while words and words[0] in _KEYWORDS:
        words = [] if words[0] == "for" else words[1:]
    return tuple(words)


def _tokens(text: str) -> list[str] | None:
    lexer = shlex.shlex(
        _COMMENT.sub("", text.replace("\\\n", " ")), posix=True, punctuation_chars=_PUNCTUATION
    )
    lexer.commenters = ""
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return None


def _is_operator(token: str) -> bool:
    return bool(token) and not set(token) - set(_PUNCTUATION)


def _substitutes(word: str) -> bool:
    return "`" in word or "$(" in word or word.endswith("$")
