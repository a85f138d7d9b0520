"""The number of processes that a command line starts.

A program that is not known to have one process is unknown: a script, a supervisor or a task runner
may start any number of them. The programs stand in tables/programs.toml with their sources.
Source for scripts: POSIX.1-2024, Shell Command Language, 2.9 (pipelines, lists, asynchronous lists).
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from poolkit.budget.model import Quantity, known, unknown
from poolkit.budget.tables import table

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from poolkit.budget.model import Workload

_Words: TypeAlias = "tuple[str, ...]"
_Groups: TypeAlias = "list[list[_Words]]"
"""Commands of a group run one after the other; the groups run at the same time.

The first group is the foreground.
"""


class Server(NamedTuple):
    """A program that starts processes, and the options and variables that set their number."""

    name: str
    options: list[str]
    variables: list[str]
    default: int | None
    """The number without an option or variable; None: unknown."""
    why: str
    """The origin of the default, or the reason why there is none."""
    files: list[str]
    """Options that name a file which may set the number too."""


SERVERS = {
    name: Server(
        name,
        each["options"],
        each.get("variables", []),
        each.get("default"),
        each.get("why", f"{name}'s default"),
        each.get("files", []),
    )
    for name, each in table("programs")["servers"].items()
}
PROGRAMS = {name: frozenset(each) for name, each in table("programs")["programs"].items()}
"""Sets of programs and sub-commands by the idea that they have in common."""

_WRAPPERS: dict[str, int] = table("programs")["wrappers"]
"""Programs that start another one, and the number of words before it: `gosu app`, `poetry run`."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")
_PYTHON = re.compile(r"python[\d.]*|pypy[\d.]*")
_MORE_OPTIONS = re.compile(r"\$\{?\w*(OPT|ARG|FLAG|PARAM|EXTRA)|\$[@*]")
_APPLICATION = re.compile(r"\$\{?\w*(APP|MODULE)")
_TAKES_NO_VALUE = frozenset({"--preload", "--reload", "--proxy-headers", "--factory", "--master"})
_KNOWN = {
    *SERVERS,
    *(PROGRAMS["one_process"] | PROGRAMS["no_connection"] | PROGRAMS["shells"]),
    *("python", "flask", "django-admin", "rq"),
}
_NUMBERS = {"GUNICORN_CMD_ARGS", *(name for each in SERVERS.values() for name in each.variables)}


_PUNCTUATION = ";&|()<>\n"
_COMMENT = re.compile(r"(?:^|(?<=[\s;]))#[^\n]*")
_LOOPS = frozenset({"for", "while", "until"})
_KEYWORDS = _LOOPS | {"if", "then", "elif", "else", "fi", "do", "done", "!"}
_NOT_FOLLOWED = frozenset({"case", "function", "select", "{", "}", "eval", "source", "."})


class ProcessCount(NamedTuple):
    """The processes of one instance."""

    number: Quantity
    is_single: bool = False
    """True if the program never has more than one process, whatever its concurrency is."""


def processes(workload: Workload) -> ProcessCount:
    """Return how many processes one instance runs, as far as its command line shows."""
    if workload.unit == "execution environment":
        return ProcessCount(known(1, "one process in an execution environment"))
    if workload.command is None:
        reason = "the image decides which command runs"
        found = workload.number("WEB_CONCURRENCY") if workload.text("WEB_CONCURRENCY") else None
        return ProcessCount(found or unknown(reason, workload.where))
    if len(workload.command) == 1:
        # One text with spaces goes to a shell in the image's entry point.
        groups = _read_script(_expanded(workload.command[0], workload))
    else:
        groups = [[tuple(_expanded(word, workload) for word in workload.command)]]
    groups = _without_shells(groups, workload)
    if groups is None or not any(groups):
        return _unclear(workload, workload.command)
    counts = [[_of_command(words, workload) for words in group] for group in groups]
    unclear = next((each for group in counts for each in group if not each.number.is_known), None)
    if unclear is not None:
        return unclear
    # Commands that follow each other: the largest counts. Commands at the same time: all do.
    largest = [max(group, key=lambda each: each.number.value or 0) for group in counts if group]
    started = [each for each in largest if each.number.value]
    if len(started) == 1:
        return started[0]
    together = sum(each.number.value or 0 for each in started)
    origin = f"{workload.command_origin}: all programs together"
    return ProcessCount(known(max(1, together), origin, workload.where))


def started(workload: Workload) -> tuple[str, Sequence[str]]:
    """Return the program that a command line starts, and its arguments; empty: the image decides."""
    return _unwrap([_expanded(word, workload) for word in workload.command or ()])


def names_program(workload: Workload, programs: Collection[str]) -> bool:
    """Return whether the command line names one of the programs."""
    texts = (_expanded(word, workload) for word in workload.command or ())
    return any(_program(word.strip("'\";")) in programs for text in texts for word in text.split())


def _unclear(workload: Workload, words: Sequence[str]) -> ProcessCount:
    program = " ".join(words)[:40]
    reason = f"the number of processes that {program!r} starts is unknown"
    return ProcessCount(unknown(reason, workload.where))


def _number(text: str, name: str, origin: str, workload: Workload) -> Quantity:
    if text.strip().isdecimal() and int(text) > 0:
        return known(int(text), f"{origin} ({name})", workload.where)
    return unknown(f"{name} is {text!r}, which is not a number of processes", workload.where)


# -- from words to commands -----------------------------------------------------------------


def _expanded(word: str, workload: Workload) -> str:
    """Replace the variables of the workload that are known."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        return workload.text(name) or match[2] or match[0]

    return _VARIABLE.sub(value, word)


def _without_shells(groups: _Groups | None, workload: Workload) -> _Groups | None:
    """Replace every `sh -c` by the commands of its script."""
    found: _Groups = [[]]
    for number, group in enumerate(groups or ()):
        into: list[_Words] = found[0] if number == 0 else []
        for words in group:
            program, rest = _unwrap(words)
            inner: _Groups | None = [[words]]
            flags = [n for n, word in enumerate(rest) if re.fullmatch(r"-[a-z]*c", word)]
            # Without -c it is a script in the image, which cannot be read.
            if program in PROGRAMS["shells"] and flags and flags[0] + 1 < len(rest):
                text = _expanded(rest[flags[0] + 1], workload)
                inner = _without_shells(_read_script(text), workload)
            if inner is None:
                return None
            into += inner[0]
            found += inner[1:]
        found += [into] if number else []
    return found if groups is not None else None


def _read_script(text: str) -> _Groups | None:
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
    groups: _Groups = [[]]
    pending, words = list[_Words](), list[str]()
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
                groups.append(started)
                pending = pending[: len(pending) - len(started)]
            elif ";" in rest and "&&" not in token and "||" not in token:
                groups[0] += pending
                pending = []
    return None if groups[1:] and _LOOPS & set(tokens) else groups


def _unwrap(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the program that a command starts in the end, without its folder, and its arguments.

    The program is empty if the command starts none, such as one that only waits.
    """
    inner: Sequence[str] | None = words
    while inner is not None:
        words = _without_assignments(inner)
        inner = _started_by(words) if words else None
    if not words:
        return "", ()
    program, rest = _program(words[0]), words[1:]
    if program == "python" and "-m" in rest[:-1]:
        module = rest.index("-m") + 1
        if all(word.startswith("-") for word in rest[:module]):
            return f"-m {rest[module]}", rest[module + 1 :]
    if program == "rails" and rest and rest[0] in ("server", "s"):
        return "puma", rest[1:]
    return program, rest


def _started_by(words: Sequence[str]) -> Sequence[str] | None:
    """Return the command that a wrapper, waiter or script starts; None if it is a program itself."""
    program, rest = _program(words[0]), words[1:]
    if program in _WRAPPERS:
        # Options stand before each of the wrapper's own words, and before the program.
        for taken in (*[1] * _WRAPPERS[program], 0):
            while rest and rest[0].startswith("-"):
                rest = rest[1:]
            rest = rest[taken:]
        # nice -n 10
        return rest[1:] if program == "nice" and rest and rest[0].isdecimal() else rest
    if program in PROGRAMS["waiters"]:
        while rest and "--" not in rest and (rest[0].startswith("-") or ":" in rest[0]):
            # dockerize -wait tcp://db:5432 -timeout 30s: an option has a value.
            has_value = rest[0].startswith("-") and rest[0] not in PROGRAMS["flags"]
            rest = rest[2 if has_value and "=" not in rest[0] else 1 :]
        return rest[rest.index("--") + 1 :] if "--" in rest else rest
    # A script may be given a command to start in the end: entrypoint.sh gunicorn -w 4.
    after = words.index("--") + 1 if "--" in words else 1
    is_script = words[0].endswith(".sh") or "entrypoint" in words[0] or after > 1
    if program in _KNOWN or not is_script or after >= len(words):
        return None
    is_command = _program(words[after]) in {*_KNOWN, *PROGRAMS["clients"], *_WRAPPERS}
    return words[after:] if is_command else None


def _without_assignments(words: Sequence[str]) -> Sequence[str]:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    return words


def _program(word: str) -> str:
    name = word.rstrip("/").rpartition("/")[2]
    return "python" if _PYTHON.fullmatch(name) else name


# -- what a command starts ------------------------------------------------------------------


def _of_command(words: _Words, workload: Workload) -> ProcessCount:
    program, arguments = _unwrap(words)
    module = program[3:].partition(".")[0] if program.startswith("-m ") else program
    before = words if "export" in words else words[: len(words) - len(arguments)]
    if any(word.partition("=")[0] in _NUMBERS for word in before if "=" in word):
        # The command line itself sets a variable that servers read.
        return _unclear(workload, words)
    origin = workload.command_origin
    if not program or program in PROGRAMS["no_connection"]:
        reason = f"{origin}: {program or 'it'} keeps no connection"
        return ProcessCount(known(0, reason, workload.where))
    line = " ".join((module, *arguments))
    if module in PROGRAMS["one_process"] or re.match(table("programs")["single"], line):
        count = known(1, f"{origin}: {module} is one process", workload.where)
        return ProcessCount(count, is_single=True)
    server = SERVERS.get(module)
    return _of_server(server, arguments, workload) if server else _unclear(workload, words)


def _of_server(server: Server, arguments: Sequence[str], workload: Workload) -> ProcessCount:
    for number, word in enumerate(arguments):
        before = arguments[number - 1] if number else ""
        is_value = before.startswith("-") and before not in _TAKES_NO_VALUE and "=" not in before
        is_open = word == "?" or (_VARIABLE.match(word) and not _APPLICATION.match(word))
        if _MORE_OPTIONS.match(word) or (is_open and not is_value):
            # Its text may be options as well as a value.
            reason = f"{server.name}: the value of {word} is unknown"
            return ProcessCount(unknown(reason, workload.where))
    if server.name != "celery":
        found = _counted(server, arguments, workload)
        if server.name == "locust" and (found.value or 0) > 1 and "--worker" not in arguments:
            found = known((found.value or 0) + 1, f"{found.origin}, and the master", workload.where)
        return ProcessCount(found)
    origin = workload.command_origin
    if "multi" in arguments:
        return _unclear(workload, ["celery", "multi"])
    is_single = option(arguments, ("--pool", "-P")) in PROGRAMS["one_in_celery"]
    if is_single:
        count = known(1, f"{origin}: this Celery pool is one process", workload.where)
    elif (scale := option(arguments, ("--autoscale",))) is not None:
        count = _number(scale.split(",")[0], "--autoscale", origin, workload)
    else:
        count = _counted(server, arguments, workload)
    if count.value is not None and {"-B", "--beat"} & set(arguments):
        count = known(count.value + 1, f"{count.origin}, and beat", workload.where)
    return ProcessCount(count, is_single)


def _counted(server: Server, arguments: Sequence[str], workload: Workload) -> Quantity:
    """Return a server's processes: by option, GUNICORN_CMD_ARGS, file, variable or default."""
    given = option(arguments, server.options)
    if given is not None:
        return _number(given, server.options[0], workload.command_origin, workload)
    own = workload.variables.get("GUNICORN_CMD_ARGS") if server.name == "gunicorn" else None
    if own is not None and own.text is None:
        return unknown(f"GUNICORN_CMD_ARGS: {own.reason}", workload.where)
    given = option(own.text.split(), server.options) if own is not None and own.text else None
    if own is not None and given is not None:
        return _number(given, "GUNICORN_CMD_ARGS", own.origin, workload)
    endings = (".ini", ".yaml", ".yml", ".xml", ".json")
    names_file = server.name == "uwsgi" and any(word.endswith(endings) for word in arguments)
    if names_file or any(word.partition("=")[0] in server.files for word in arguments):
        return unknown(f"{server.name} reads its number of workers from a file", workload.where)
    if (found := workload.number(*server.variables)) is not None:
        is_none = found.value == 0
        return unknown(f"{found.origin}: 0 is no number of processes") if is_none else found
    origin = f"{workload.command_origin}: {server.why}"
    return (
        unknown(server.why, workload.where)
        if server.default is None
        else known(server.default, origin, workload.where)
    )


def option(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """Return an option's value: `--name value`, `--name=value`, `-nvalue`; the last one wins."""
    found = None
    for number, word in enumerate(arguments):
        name, separator, value = word.partition("=")
        if name in names and separator:
            found = value
        elif word in names and number + 1 < len(arguments):
            found = arguments[number + 1]
        elif len(word) > 2 and word[:2] in names and not word.startswith("--"):
            found = word[2:]
    return found
