"""The kit's own templates: every environment fits its database, and proxies are recognised."""

from pathlib import Path

import pytest

from poolkit.budget.command import compute_budget
from poolkit.budget.model import Options
from poolkit.config.presets import ENVIRONMENTS, preset

INFRA = Path(__file__).resolve().parents[2] / "infra"
DEPLOYED = sorted(file.stem for file in INFRA.glob("environments/*.toml"))


@pytest.fixture(scope="module", params=DEPLOYED)
def budget(request):
    """The budget of one of the kit's environments."""
    return compute_budget(Options(paths=(INFRA,), environment=request.param))


def test_every_environment_of_the_presets_is_deployed():
    """An environment has a file of parameters, and a file is an environment's."""
    assert sorted(ENVIRONMENTS) == DEPLOYED


def test_every_environment_fits(budget):
    """No number is unknown, and old and new instances together are within max_connections."""
    assert budget.gaps == ()
    assert budget.unread == ()
    assert budget.verdict == "fits"


def test_the_numbers_are_those_of_the_presets(budget):
    """A process holds the connections of its preset, unless the template overrides it."""
    for service in budget.services:
        chosen = preset(service.target, budget.environment)
        if service.target == "worker":
            assert service.per_process == 1
        elif "POOLKIT_" not in service.pool_size.origin + service.max_overflow.origin:
            assert service.per_process == chosen.max_connections_per_process


def test_a_preset_for_a_proxy_connects_to_one(budget):
    """A function with lambda_proxy leads to a proxy in the templates."""
    for service in budget.services:
        if service.target == "lambda_proxy":
            assert service.through


def test_max_connections_is_what_the_memory_carries(budget):
    """The parameter group sets no more than RDS's own formula would give."""
    assert not budget.database.is_set_too_high
