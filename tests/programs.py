"""Programs without a wheel that tests need: skipped where one is missing, but not in CI."""

import os
import shutil
from typing import Any

import pytest

from poolkit.local.mariadb import INSTALL_MARIADB, find_mariadb
from poolkit.local.pgbouncer import INSTALL_PGBOUNCER, find_pgbouncer


def needs(program: object, reason: str) -> Any:
    """Return a mark that skips tests without a program; in CI they run, and fail for its lack.

    Args:
        program: where it was found; None if it is missing.
        reason: how to install it.
    """
    return pytest.mark.skipif(program is None and not os.environ.get("CI"), reason=reason)


def _on_path(program: str, how: str) -> Any:
    return needs(shutil.which(program), f"{program} is not on PATH: {how}")


needs_kubectl = _on_path("kubectl", "add the folder that scripts/kubernetes-programs prints")
needs_helm = _on_path("helm", "add the folder that scripts/kubernetes-programs prints")
needs_promtool = _on_path("promtool", "apt-get install prometheus")
needs_prometheus = _on_path("prometheus", "apt-get install prometheus")
needs_chromium = _on_path("chromium", "apt-get install chromium")
needs_pgbouncer = needs(find_pgbouncer(), INSTALL_PGBOUNCER)
needs_mariadb = needs(find_mariadb(), INSTALL_MARIADB)
