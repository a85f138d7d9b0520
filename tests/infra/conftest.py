"""The fixture of the tests of the templates."""

import pytest
from infra.deployed import ENVIRONMENTS, VARIANTS, deployment_of


@pytest.fixture(params=ENVIRONMENTS)
def deployment(request):
    """The stacks of each environment in turn."""
    return deployment_of(request.param)


@pytest.fixture(params=(*ENVIRONMENTS, *VARIANTS))
def any_deployment(request):
    """The stacks of each environment, and with what else the templates offer, in turn."""
    return deployment_of(request.param)
