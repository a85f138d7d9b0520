"""How many processes a command line starts, as far as it tells.

A program that is not known to be one process is unknown: a script, a supervisor or a task runner
may start any number of them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from poolkit.budget.processes.programs import (
    CELERY_ONE,
    DJANGO_ONCE,
    FLASK_ONE,
    KIT_WEB,
    NONE_OF_THEIRS,
    ONE_IN_CELERY,
    ONE_PROCESS,
    RQ_POOL,
    SERVERS,
    SHELLS,
    WAITERS,
    WRAPPERS,
)
from poolkit.budget.processes.shell_scripts import Script, Words, read_script
from poolkit.budget.quantity import Quantity, known, unknown

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from poolkit.budget.model import Workload
    from poolkit.budget.processes.programs import Server

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")
_PYTHON = re.compile(r"python[\d.]*|pypy[\d.]*")
_MORE_OPTIONS = re.compile(r"\$\{?\w*(OPT|ARG|FLAG|PARAM|EXTRA)|\$[@*]")
_APPLICATION = re.compile(r"\$\{?\w*(APP|MODULE)")
_TAKES_NO_VALUE = frozenset({"--preload", "--reload", "--proxy-headers", "--factory", "--master"})


def processes(workload: Workload) -> Quantity:
    """Return how many processes one instance runs, as far as its command line tells."""
    if workload.command is None:
        return _without_command(workload)
    script = _script(workload.command, workload)
    if script is None:
        return _not_known(workload, " ".join(workload.command)[:40])
    if not script.commands:
        return unknown(f"{workload.name}: the command is empty", workload.where)
    found = [[_of_command(words, workload) for words in group] for group in script.groups]
    unclear = next((each for group in found for each in group if each.value is None), None)
    if unclear is not None:
        return unclear
    # One after the other, the largest counts; beside each other, all of them.
    largest = [max(group, key=lambda each: each.value or 0) for group in found if group]
    started = [each for each in largest if each.value]
    if len(started) == 1:
        return started[0]
    together = sum(each.value or 0 for each in started)
    return known(max(1, together), f"{workload.command_origin}: all that it starts", workload.where)


def names_program(workload: Workload, programs: Collection[str]) -> bool:
    """Tell whether the command line names one of the programs."""
    texts = (_expanded(word, workload) for word in workload.command or ())
    return any(_program(word.strip("'\";")) in programs for text in texts for word in text.split())


def _without_command(workload: Workload) -> Quantity:
    if number := workload.text("WEB_CONCURRENCY"):
        return _number(
            number, "WEB_CONCURRENCY", workload.variables["WEB_CONCURRENCY"].origin, workload
        )
    return unknown(
        "the image decides which command runs; name the processes with "
        f"--service {workload.name}=POOL+OVERFLOWxPROCESSES",
        workload.where,
    )


def _not_known(workload: Workload, program: str) -> Quantity:
    return unknown(
        f"how many processes {program!r} starts cannot be seen; say it with "
        f"--service {workload.name}=POOL+OVERFLOWxPROCESSES",
        workload.where,
    )


# -- from words to commands -----------------------------------------------------------------


def _script(words: Sequence[str], workload: Workload) -> Script | None:
    """Return the commands of a command line, with the workload's own variables in them."""
    if len(words) == 1:
        # One text with spaces is what a shell in the image's entry point is given.
        return _unwrapped(read_script(_expanded(words[0], workload)), workload)
    return _unwrapped(Script([tuple(_expanded(word, workload) for word in words)]), workload)


def _unwrapped(script: Script | None, workload: Workload) -> Script | None:
    """Replace every shell by the commands of its script."""
    if script is None:
        return None
    found = Script()
    for number, group in enumerate(script.groups):
        beside: list[Words] = []
        into = found.foreground if number == 0 else beside
        for words in group:
            inner = _inner_script(words, workload)
            if inner is None:
                return None
            into += inner.foreground
            found.beside += inner.beside
        if number > 0:
            found.beside.append(beside)
    return found


def _inner_script(words: Words, workload: Workload) -> Script | None:
    program, rest = _unwrap(words)
    if program not in SHELLS:
        return Script([words])
    for number, word in enumerate(rest):
        if re.fullmatch(r"-[a-z]*c", word) and number + 1 < len(rest):
            return _unwrapped(read_script(_expanded(rest[number + 1], workload)), workload)
    # A file of commands, in the image.
    return Script([words])


def _unwrap(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the program that a command comes to, without its folder, and its arguments."""
    words = _without_assignments(words)
    if not words:
        return "", ()
    program = _program(words[0])
    if program in WRAPPERS:
        return _unwrap(_wrapped(program, words[1:]))
    if program not in _KNOWN:
        place = _place_of_server(words)
        return (program, words[1:]) if place is None else _unwrap(words[place:])
    if program == "python" and "-m" in words[1:-1]:
        module = words.index("-m") + 1
        if all(word.startswith("-") for word in words[1:module]):
            return f"-m {words[module]}", words[module + 1 :]
    return program, words[1:]


def _wrapped(wrapper: str, words: Sequence[str]) -> Sequence[str]:
    """Return what a program starts, after its own options and words."""
    for _ in range(WRAPPERS[wrapper]):
        words = _without_options(words)[1:]
    words = _without_options(words)
    # nice -n 10
    return words[1:] if wrapper == "nice" and words and words[0].isdecimal() else words


def _without_options(words: Sequence[str]) -> Sequence[str]:
    while words and words[0].startswith("-"):
        words = words[1:]
    return words


def _place_of_server(words: Sequence[str]) -> int | None:
    """Find what a script is given to start in the end, as in `entrypoint.sh gunicorn -w 4`."""
    after = words.index("--") + 1 if "--" in words else 1
    script = words[0].endswith(".sh") or "entrypoint" in words[0] or after > 1
    if not script or after >= len(words):
        return None
    return after if _program(words[after]) in {*SERVERS, *SHELLS, *WRAPPERS, "python"} else None


def _without_assignments(words: Sequence[str]) -> Sequence[str]:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    return words


def _program(word: str) -> str:
    name = PurePosixPath(word).name
    return "python" if _PYTHON.fullmatch(name) else name


_KNOWN = {*SERVERS, *ONE_PROCESS, *NONE_OF_THEIRS, *SHELLS}
_KNOWN |= {"python", "rq", "flask", "django-admin"}
_NUMBERS = {"GUNICORN_CMD_ARGS", *(name for each in SERVERS.values() for name in each.variables)}


def _expanded(word: str, workload: Workload) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        return workload.text(name) or match[2] or match[0]

    return _VARIABLE.sub(value, word)


# -- what a command starts ------------------------------------------------------------------


def _of_command(words: Words, workload: Workload) -> Quantity:
    program, arguments = _unwrap(words)
    module = program[3:].partition(".")[0] if program.startswith("-m ") else program
    if _sets_a_number(words, arguments):
        return _not_known(workload, " ".join(words)[:40])
    server = KIT_WEB if program == "-m webapp" else SERVERS.get(module)
    if module == "rq" and "worker-pool" in arguments:
        server = RQ_POOL
    origin = workload.command_origin
    if server is not None:
        return _of_server(server, arguments, workload)
    waits = program in WAITERS and "--" not in arguments
    if program in NONE_OF_THEIRS or waits or _only_sets(words):
        return known(0, f"{origin}: {program} keeps no connection", workload.where)
    if module in ONE_PROCESS or _is_one(module, arguments):
        return known(1, f"{origin}: {module} is one process", workload.where)
    return _not_known(workload, " ".join(words)[:40])


def _sets_a_number(words: Words, arguments: Sequence[str]) -> bool:
    """Tell whether a variable that servers read is set within the command line itself."""
    before = words if "export" in words else words[: len(words) - len(arguments)]
    return any(word.partition("=")[0] in _NUMBERS for word in before if "=" in word)


def _only_sets(words: Words) -> bool:
    return not _without_assignments(words)


def _is_one(program: str, arguments: Sequence[str]) -> bool:
    if program in ("rq", "flask"):
        return bool(({"worker"} if program == "rq" else FLASK_ONE) & set(arguments))
    django = program == "django-admin"
    if program == "python" and arguments and _program(arguments[0]) == "manage.py":
        django, arguments = True, arguments[1:]
    return django and bool(arguments) and arguments[0] in DJANGO_ONCE


def _of_server(server: Server, arguments: Sequence[str], workload: Workload) -> Quantity:
    if (hidden := _hidden(arguments)) is not None:
        return unknown(f"{server.name}: what {hidden} holds is not known", workload.where)
    if server.name == "celery":
        return _celery(arguments, server, workload)
    found = _counted(server, arguments, workload)
    if server.name == "locust" and (found.value or 0) > 1 and "--worker" not in arguments:
        return known((found.value or 0) + 1, f"{found.origin}, and the master", workload.where)
    return found


def _hidden(arguments: Sequence[str]) -> str | None:
    """Find a word whose text is not known, and which may be options as well as a value."""
    for number, word in enumerate(arguments):
        before = arguments[number - 1] if number else ""
        is_value = before.startswith("-") and before not in _TAKES_NO_VALUE and "=" not in before
        is_open = word == "?" or (_VARIABLE.match(word) and not _APPLICATION.match(word))
        if _MORE_OPTIONS.match(word) or (is_open and not is_value):
            return word
    return None


def _counted(server: Server, arguments: Sequence[str], workload: Workload) -> Quantity:
    given = _option(arguments, server.options)
    if given is not None:
        return _number(given, server.options[0], workload.command_origin, workload)
    if (given := _in_cmd_args(server, workload)) is not None:
        origin = workload.variables["GUNICORN_CMD_ARGS"].origin
        return _number(given, "GUNICORN_CMD_ARGS", origin, workload)
    if _reads_file(server, arguments):
        return unknown(f"{server.name} reads its number of workers from a file", workload.where)
    if (found := _by_variable(server, workload)) is not None:
        return found
    if server.default is None:
        return unknown(server.why, workload.where)
    return known(server.default, f"{workload.command_origin}: {server.why}", workload.where)


def _reads_file(server: Server, arguments: Sequence[str]) -> bool:
    if any(word.partition("=")[0] in server.files for word in arguments):
        return True
    endings = (".ini", ".yaml", ".yml", ".xml", ".json")
    return server.name == "uwsgi" and any(word.endswith(endings) for word in arguments)


def _in_cmd_args(server: Server, workload: Workload) -> str | None:
    if server.name != "gunicorn":
        return None
    found = workload.variables.get("GUNICORN_CMD_ARGS")
    if found is not None and found.text is None:
        return found.reason
    try:
        return _option(shlex.split((found.text if found else "") or ""), server.options)
    except ValueError:
        return found.text if found else None


def _by_variable(server: Server, workload: Workload) -> Quantity | None:
    for name in server.variables:
        found = workload.variables.get(name)
        if found is None:
            continue
        if found.text is None:
            return unknown(f"{name}: {found.reason}", workload.where)
        return _number(found.text, name, found.origin, workload)
    return None


def _celery(arguments: Sequence[str], server: Server, workload: Workload) -> Quantity:
    origin = workload.command_origin
    if "multi" in arguments:
        return _not_known(workload, "celery multi")
    if "worker" not in arguments and CELERY_ONE & set(arguments):
        return known(1, f"{origin}: this part of Celery is one process", workload.where)
    if _option(arguments, ("--pool", "-P")) in ONE_IN_CELERY:
        found = known(1, f"{origin}: this Celery pool is one process", workload.where)
    elif (scale := _option(arguments, ("--autoscale",))) is not None:
        found = _number(scale.split(",")[0], "--autoscale", origin, workload)
    else:
        found = _counted(server, arguments, workload)
    if found.value is not None and {"-B", "--beat"} & set(arguments):
        return known(found.value + 1, f"{found.origin}, and beat", workload.where)
    return found


def _option(arguments: Sequence[str], names: Sequence[str]) -> str | None:
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


def _number(text: str, name: str, origin: str, workload: Workload) -> Quantity:
    if text.strip().isdecimal() and int(text) > 0:
        return known(int(text), f"{origin} ({name})", workload.where)
    return unknown(f"{name} is {text!r}, which is no number here", workload.where)
