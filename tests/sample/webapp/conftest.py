"""The two web services as processes of their own."""

from collections.abc import Callable

import pytest
from web_service import Served, serving

APPLICATIONS = {"web": "webapp.app:app", "web_async": "webapp.async_app:app"}


@pytest.fixture(params=APPLICATIONS)
def target(request) -> str:
    """Name each web target in turn."""
    return request.param


@pytest.fixture
def serve(target) -> Callable[..., Served]:
    """Return the function that starts the target's web service."""
    return lambda url, *options, **environ: serving(APPLICATIONS[target], url, *options, **environ)
