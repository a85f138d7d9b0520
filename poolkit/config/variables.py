"""Names of environment variables that were most likely meant to be others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def refuse_misspelt(
    variables: Iterable[str], known: Collection[str], *, prefix: str, theirs: Collection[str] = ()
) -> None:
    """Refuse a variable that nobody reads and that is nearly the name of one that is read.

    Not every unknown name: Kubernetes adds POOLKIT_PORT and the like for a service that is
    called poolkit.

    Args:
        variables: the names that are set.
        known: those that are read.
        prefix: what the known ones begin with; others are not looked at.
        theirs: names with that prefix that a platform always sets, passed over in no time.

    Raises:
        ConfigurationError: names the variable, and the one that was meant.
    """
    for variable in variables:
        if variable.startswith(prefix) and variable not in known and variable not in theirs:
            _refuse_near_miss(variable, known)


def _refuse_near_miss(variable: str, known: Collection[str]) -> None:
    import difflib  # noqa: PLC0415  (only a mistake needs it, and every import needs time)

    close = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
    if close:
        raise ConfigurationError(f"{variable} is not a setting; did you mean {close[0]}?")
