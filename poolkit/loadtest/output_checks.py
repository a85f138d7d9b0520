"""Refusing results that have no place to go, before the load: Locust writes them when it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import Namespace

CSV_ENDS = (
    *("_stats.csv", "_stats_history.csv", "_failures.csv", "_exceptions.csv"),
    *("_connections.csv", "_latency.csv", "_latency.hlog"),
)
"""What is put behind the prefix of `--csv`, by Locust and by the kit."""


def check_outputs(options: Namespace) -> None:
    """Check every file of results that Locust's options name.

    Raises:
        ConfigurationError: one cannot be written; one line.
    """
    json_file = f"{options.json_file}.json" if options.json_file else ""
    for option, name in (
        ("--html", options.html_file),
        ("--json-file", json_file),
        ("--junit", options.junit),
        *(("--csv", f"{options.csv_prefix}{end}") for end in CSV_ENDS if options.csv_prefix),
    ):
        if name:
            check_output(option, Path(name))


def check_output(option: str, file: Path) -> None:
    """Check that a file can be written, whose folders need not be there yet; nothing is made.

    Raises:
        ConfigurationError: it cannot; one line.
    """
    if file.is_dir():
        raise ConfigurationError(f"{option}: {file} is a folder; wanted the name of a file")
    there = file if file.exists() else next(one for one in file.absolute().parents if one.exists())
    if there != file and not there.is_dir():
        raise ConfigurationError(f"{option}: {file} cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise ConfigurationError(f"{option}: {file} cannot be written: no permission for {there}")
