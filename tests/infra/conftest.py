"""The fixture of the tests of the templates."""

import pytest
from infra.deployed import ENVIRONMENTS, fleet_of


@pytest.fixture(params=ENVIRONMENTS)
def fleet(request):
    """The stacks of each environment in turn."""
    return fleet_of(request.param)
