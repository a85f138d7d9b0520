"""Refusing a run whose users would each fail for want of a variable: once, before the load.

A user class says what it needs as `needs`: pairs of a variable and what it is for.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from locust.runners import MasterRunner, WorkerRunner

from poolkit.loadtest.option_checks import let_processes_come, refuse

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.env import Environment


def exit_if_variables_are_missing(environment: Environment, options: Namespace) -> None:
    """End Locust with status 2 and one line where users of this process would miss a variable.

    A master has no users, and those of workers on other machines have variables of their own. Of
    `--processes` the master says it, whose environment they share.
    """
    runner = environment.runner
    if isinstance(runner, MasterRunner) and not options.processes:
        return
    why = missing(environment)
    if not why:
        return
    if isinstance(runner, WorkerRunner) and getattr(options, "master_is_here", False):
        sys.exit(1)
    let_processes_come(environment)
    refuse(why)


def missing(environment: Environment) -> str:
    """Return which variable a user class needs and has not; empty if there is none."""
    for user_class in environment.user_classes:
        for name, purpose in getattr(user_class, "needs", ()):
            if not os.environ.get(name):
                return f"{name} is not set; {user_class.__name__} needs it: {purpose}"
    return ""
