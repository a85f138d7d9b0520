"""Files of NAME=value lines, as compose, Kustomize and Docker read them."""

from __future__ import annotations


def read_variables(text: str) -> dict[str, str]:
    """Return the variables of a file; comments and lines without a value are none."""
    found = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.lstrip().startswith("#"):
            found[name.strip().removeprefix("export ").strip()] = value.strip().strip("'\"")
    return found
