"""The fixture of the tests of the templates."""

import pytest
from infra.deployed import ENVIRONMENTS, VARIANTS, fleet_of


@pytest.fixture(params=ENVIRONMENTS)
def fleet(request):
    """The stacks of each environment in turn."""
    return fleet_of(request.param)


@pytest.fixture(params=(*ENVIRONMENTS, *VARIANTS))
def any_fleet(request):
    """The stacks of each environment, and with what else the templates offer, in turn."""
    return fleet_of(request.param)
