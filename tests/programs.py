"""Programs without a wheel that tests need: skipped where one is missing, but not in CI."""

import os
from typing import Any

import pytest


def needs(program: object, reason: str) -> Any:
    """Return a mark that skips tests without a program; in CI they run, and fail for its lack.

    Args:
        program: where it was found; None if it is missing.
        reason: how to install it.
    """
    return pytest.mark.skipif(program is None and not os.environ.get("CI"), reason=reason)
