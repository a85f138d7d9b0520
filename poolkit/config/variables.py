"""Misspelt environment variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ("refuse_misspelt",)


def refuse_misspelt(
    variables: Iterable[str],
    known: Collection[str],
    *,
    prefix: str,
    platform: Collection[str] = (),
) -> None:
    """Refuse a variable that has no effect and that is nearly the name of a setting.

    Other unknown names are allowed: Kubernetes adds POOLKIT_PORT and others for a service with the
    name poolkit.

    Args:
        variables: the names that are set.
        known: the names of the settings.
        prefix: the beginning of the settings' names; variables without it are not checked.
        platform: names with that prefix that a platform always sets. They are skipped first,
            because comparing names takes time at each cold start.

    Raises:
        ConfigurationError: names the variable, and the setting that was probably meant.
    """
    for variable in variables:
        if not variable.startswith(prefix) or variable in known or variable in platform:
            continue
        import difflib  # noqa: PLC0415  (only a mistake needs it, and every import needs time)

        close = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
        if close:
            raise ConfigurationError(f"{variable} is not a setting; did you mean {close[0]}?")
