"""The number of processes that a command line starts.

A program that is not known to have one process is unknown: a script, a supervisor or a task runner
may start any number of them. The programs stand in tables/programs.toml with their sources.
Source for scripts: POSIX.1-2024, Shell Command Language, 2.9 (pipelines, lists, asynchronous lists).
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from poolkit.budget.model import Quantity, known, unknown
from poolkit.budget.tables import table

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from poolkit.budget.model import Workload

_Words: TypeAlias = "Sequence[str]"

_SERVERS: dict[str, dict[str, Any]] = table("programs")["servers"]
PROGRAMS = {name: frozenset(each) for name, each in table("programs")["programs"].items()}
"""Sets of programs and sub-commands by the idea that they have in common."""
_WRAPPERS: dict[str, int] = table("programs")["wrappers"]
_KNOWN = {
    *(_SERVERS.keys() | PROGRAMS["one_process"] | PROGRAMS["no_connection"] | PROGRAMS["shells"]),
    *("python", "flask", "django-admin", "rq"),
}
_NUMBERS = {"GUNICORN_CMD_ARGS"}.union(*(each.get("variables", ()) for each in _SERVERS.values()))

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")
_PYTHON = re.compile(r"python[\d.]*|pypy[\d.]*")
_MORE_OPTIONS = re.compile(r"\$\{?\w*(OPT|ARG|FLAG|PARAM|EXTRA)|\$[@*]")
_APPLICATION = re.compile(r"\$\{?\w*(APP|MODULE)")
_TAKES_NO_VALUE = frozenset({"--preload", "--reload", "--proxy-headers", "--factory", "--master"})
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
        found = workload.number("WEB_CONCURRENCY") if workload.text("WEB_CONCURRENCY") else None
        reason = "the image decides which command runs"
        return ProcessCount(found or unknown(reason, workload.where))
    if len(workload.command) == 1:
        # One text with spaces goes to a shell in the image's entry point.
        count = _of_script(workload.command[0], workload)
    else:
        count = _of_command([_expanded(word, workload) for word in workload.command], workload)
    if count.number.value == 0:
        return ProcessCount(known(1, f"{workload.command_origin}: one process", workload.where))
    return count


def started(workload: Workload) -> tuple[str, _Words]:
    """Return the program that a command line starts, and its arguments; empty: the image decides."""
    return _unwrap([_expanded(word, workload) for word in workload.command or ()])


def names_program(workload: Workload, programs: Collection[str]) -> bool:
    """Return whether the command line names one of the programs."""
    texts = (_expanded(word, workload) for word in workload.command or ())
    return any(_program(word.strip("'\";")) in programs for text in texts for word in text.split())


def option(arguments: _Words, names: _Words) -> str | None:
    """Return an option's value: `--name value`, `--name=value`, `-nvalue`; the last one wins."""
    found = None
    for word, after in pairwise([*arguments, ""]):
        name, separator, value = word.partition("=")
        if name in names and separator:
            found = value
        elif word in names and after:
            found = after
        elif len(word) > 2 and word[:2] in names and not word.startswith("--"):
            found = word[2:]
    return found


def _expanded(word: str, workload: Workload) -> str:
    """Replace the variables of the workload that are known."""
    return _VARIABLE.sub(lambda m: workload.text(m[1] or m[3]) or m[2] or m[0], word)


# -- scripts --------------------------------------------------------------------------------


def _of_script(text: str, workload: Workload) -> ProcessCount:
    """Return the processes of a script: of commands that follow each other, the largest counts.

    Those of commands at the same time add up.
    """
    jobs = _read_script(_expanded(text, workload)) or ()
    largest: list[ProcessCount] = []
    for job in filter(None, jobs):
        counts = [_of_command(words, workload) for words in job]
        unclear = next((each for each in counts if not each.number.is_known), None)
        if unclear is not None:
            return unclear
        largest.append(max(counts, key=lambda each: each.number.value or 0))
    if not largest:
        return _unclear(text, workload)
    # The others keep no connection.
    running = [each for each in largest if each.number.value] or largest[:1]
    if len(running) == 1:
        return running[0]
    together = sum(each.number.value or 0 for each in running)
    origin = f"{workload.command_origin}: all programs together"
    return ProcessCount(known(together, origin, workload.where))


def _read_script(text: str) -> list[list[_Words]] | None:
    """Return the commands of a script, those in the foreground first; None if it cannot be followed.

    Functions, cases, groups and subshells are not followed, nor a loop that starts commands in
    the background: the text does not show how many.
    """
    tokens = _tokens(text)
    if tokens is None or any(
        each in _NOT_FOLLOWED or re.search(r"`|\$\(|\$$", each) for each in tokens
    ):
        return None
    jobs: list[list[_Words]] = [[]]
    pending, words = list[_Words](), list[str]()
    skip = False
    for token in [*tokens, ";"]:
        if skip or not token or set(token) - set(_PUNCTUATION):
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
            pending += [words] if words else []
            words = []
            # The operator decides where the pending commands go.
            rest = token.replace("\n", ";").replace("&&", "").replace("||", "")
            if "|" in rest:
                # A pipe starts its last command alone, & starts them all.
                jobs.append([pending.pop()] if pending else [])
            elif "&" in rest:
                jobs.append(pending)
                pending = []
            elif ";" in rest and "&&" not in token and "||" not in token:
                jobs[0] += pending
                pending = []
    return None if jobs[1:] and _LOOPS & set(tokens) else jobs


def _tokens(text: str) -> list[str] | None:
    """Return the words and operators of a script; None if a quotation mark has no end."""
    plain = _COMMENT.sub("", text.replace("\\\n", " "))
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=_PUNCTUATION)
    lexer.commenters, lexer.whitespace, lexer.whitespace_split = "", " \t\r", True
    try:
        return list(lexer)
    except ValueError:
        return None


# -- the program of a command ---------------------------------------------------------------


def _unwrap(words: _Words) -> tuple[str, _Words]:
    """Return the program that a command starts in the end, without its folder, and its arguments.

    The program is empty if the command starts none, such as one that only waits.
    """
    inner: _Words | None = words
    while inner is not None:
        words = inner
        while words and re.match(r"\w+=", words[0]):
            words = words[1:]
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


def _started_by(words: _Words) -> _Words | None:
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


def _program(word: str) -> str:
    name = word.rstrip("/").rpartition("/")[2]
    return "python" if _PYTHON.fullmatch(name) else name


# -- the processes of a program -------------------------------------------------------------


def _of_command(words: _Words, workload: Workload) -> ProcessCount:
    program, arguments = _unwrap(words)
    if program in PROGRAMS["shells"]:
        # Without -c it is a script in the image, which cannot be read.
        flags = [n for n, word in enumerate(arguments) if re.fullmatch(r"-[a-z]*c", word)]
        if flags and flags[0] + 1 < len(arguments):
            return _of_script(arguments[flags[0] + 1], workload)
    before = words if "export" in words else words[: len(words) - len(arguments)]
    if any(word.partition("=")[0] in _NUMBERS for word in before if "=" in word):
        # The command line itself sets a variable that servers read.
        return _unclear(" ".join(words), workload)
    origin = workload.command_origin
    if not program or program in PROGRAMS["no_connection"]:
        reason = f"{origin}: {program or 'it'} keeps no connection"
        return ProcessCount(known(0, reason, workload.where))
    module = program[3:].partition(".")[0] if program.startswith("-m ") else program
    line = " ".join((module, *arguments))
    if module in PROGRAMS["one_process"] or re.match(table("programs")["single"], line):
        count = known(1, f"{origin}: {module} is one process", workload.where)
        return ProcessCount(count, is_single=True)
    if module not in _SERVERS or (module == "celery" and "multi" in arguments):
        return _unclear(line, workload)
    return _of_server(module, arguments, workload)


def _of_server(name: str, arguments: _Words, workload: Workload) -> ProcessCount:
    for before, word in pairwise(["", *arguments]):
        is_value = before.startswith("-") and before not in _TAKES_NO_VALUE and "=" not in before
        is_open = word == "?" or (_VARIABLE.match(word) and not _APPLICATION.match(word))
        if _MORE_OPTIONS.match(word) or (is_open and not is_value):
            # Its text may be options as well as a value.
            return ProcessCount(unknown(f"{name}: the value of {word} is unknown", workload.where))
    origin = workload.command_origin
    is_celery = name == "celery"
    is_single = is_celery and option(arguments, ("--pool", "-P")) in PROGRAMS["one_in_celery"]
    scale = option(arguments, ("--autoscale",)) if is_celery else None
    if is_single:
        count = known(1, f"{origin}: this Celery pool is one process", workload.where)
    elif scale is not None:
        count = _number(scale.split(",")[0], "--autoscale", origin, workload)
    else:
        count = _counted(name, arguments, workload)
    has_beat = is_celery and {"-B", "--beat"} & set(arguments)
    has_master = name == "locust" and "--worker" not in arguments and (count.value or 0) > 1
    if count.value is not None and (has_beat or has_master):
        more = "beat" if has_beat else "the master"
        count = known(count.value + 1, f"{count.origin}, and {more}", workload.where)
    return ProcessCount(count, is_single)


def _counted(name: str, arguments: _Words, workload: Workload) -> Quantity:
    """Return a server's processes: by option, GUNICORN_CMD_ARGS, file, variable or default."""
    server = _SERVERS[name]
    options, why = server["options"], server.get("why", f"{name}'s default")
    more = workload.variables.get("GUNICORN_CMD_ARGS") if name == "gunicorn" else None
    places = [(arguments, options[0], workload.command_origin)]
    places += [((more.text or "").split(), "GUNICORN_CMD_ARGS", more.origin)] if more else []
    for words, label, origin in places:
        if (given := option(words, options)) is not None:
            return _number(given, label, origin, workload)
    if more is not None and more.text is None:
        return unknown(f"GUNICORN_CMD_ARGS: {more.reason}", workload.where)
    endings = tuple(server.get("endings", ()))
    if any(
        w.partition("=")[0] in server.get("files", ()) or w.endswith(endings) for w in arguments
    ):
        return unknown(f"{name} reads its number of workers from a file", workload.where)
    if (found := workload.number(*server.get("variables", ()))) is not None:
        is_none = found.value == 0
        return unknown(f"{found.origin}: 0 is no number of processes") if is_none else found
    if "default" not in server:
        return unknown(why, workload.where)
    return known(server["default"], f"{workload.command_origin}: {why}", workload.where)


def _number(text: str, name: str, origin: str, workload: Workload) -> Quantity:
    if text.strip().isdecimal() and int(text) > 0:
        return known(int(text), f"{origin} ({name})", workload.where)
    return unknown(f"{name} is {text!r}, which is not a number of processes", workload.where)


def _unclear(line: str, workload: Workload) -> ProcessCount:
    reason = f"the number of processes that {line[:40]!r} starts is unknown"
    return ProcessCount(unknown(reason, workload.where))
