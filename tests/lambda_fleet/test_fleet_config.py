"""What a function's configuration refuses, and what a fleet says when it cannot be used."""

import dataclasses
import math
import socket
from pathlib import Path

import pytest

from poolkit.errors import FleetNotRunning, FunctionConfigError, LambdaFleetError
from poolkit.lambda_fleet import FunctionConfig, LambdaFleet
from poolkit.local.ports import free_port


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"handler": "handler"}, "handler must be 'module.function'"),
        ({"handler": ""}, "handler must be 'module.function'"),
        ({"task_root": "/no/such/place"}, "task_root must be the directory"),
        ({"python": "/no/such/python"}, "python must be an interpreter"),
        ({"timeout_s": 0}, "timeout_s must be"),
        ({"timeout_s": 901}, "timeout_s must be 0.001 to 900, found 901"),
        ({"timeout_s": math.nan}, "timeout_s must be"),
        ({"init_limit_s": -1}, "init_limit_s must be"),
        ({"memory_mb": 64}, "memory_mb must be 128 to 10240, found 64"),
        ({"reserved_concurrency": -1}, "reserved_concurrency must be"),
        ({"idle_timeout_s": math.inf}, "idle_timeout_s must be"),
        ({"shutdown_ms": 2_001}, "shutdown_ms must be 0 to 2000"),
        ({"throttle_status": 418}, "throttle_status must be 429 or 503"),
        ({"env": {"_HANDLER": "x"}}, "env holds _HANDLER, which Lambda sets itself"),
        ({"env": {"POOL_SIZE": 5}}, "env must map names to strings, found POOL_SIZE=5"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path, wrong, message):
    """The message names the field, what is allowed and what was found."""
    with pytest.raises(FunctionConfigError, match=message):
        FunctionConfig(**{"handler": "app.handler", "task_root": tmp_path, **wrong})


def test_the_configuration_cannot_be_changed(tmp_path):
    """It is frozen, its variables included."""
    variables = {"A": "1"}
    config = FunctionConfig(handler="app.handler", task_root=tmp_path, env=variables)
    variables["A"] = "2"
    assert config.env["A"] == "1"
    with pytest.raises(TypeError):
        config.env["A"] = "2"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.handler = "other.handler"


def test_a_port_in_use_is_reported_at_start(tmp_path):
    """The message names the address, and the fleet can be started later."""
    # Not one of those that outgoing connections get: it is to be free again afterwards.
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        config = FunctionConfig(handler="app.handler", task_root=tmp_path)
        fleet = LambdaFleet(config, log_dir=tmp_path / "logs", port=port)
        with pytest.raises(LambdaFleetError, match=f"cannot listen on 127.0.0.1:{port}"):
            fleet.start()
    with fleet:
        assert fleet.url == f"http://127.0.0.1:{port}"


DEV_NULL = Path("/dev/null/logs")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"log_dir": DEV_NULL}, "cannot create the log directory /dev/null/logs: Not"),
        ({"port": 65_536}, "port must be 0 to 65535, found 65536"),
        ({"port": -1}, "port must be 0 to 65535, found -1"),
    ],
)
def test_a_reason_that_keeps_a_fleet_from_starting_is_reported_at_start(tmp_path, wrong, message):
    """The kit's own error has what was wrong, and the fleet does not count as running."""
    config = FunctionConfig(handler="app.handler", task_root=tmp_path)
    fleet = LambdaFleet(config, **({"log_dir": tmp_path / "logs"} | wrong))
    for _ in range(2):
        with pytest.raises(LambdaFleetError, match=message):
            fleet.start()


def test_a_fleet_that_is_not_running_says_so(tmp_path):
    """Before `start` and after `stop` there is no address and nothing to ask."""
    fleet = LambdaFleet(
        FunctionConfig(handler="app.handler", task_root=tmp_path), log_dir=tmp_path / "logs"
    )
    fleet.stop()
    asked = (fleet.stats, fleet.pids, fleet.records, lambda: fleet.url, lambda: fleet.invoke({}))
    for ask in asked:
        with pytest.raises(FleetNotRunning, match=r"start\(\)"):
            ask()
    with fleet, pytest.raises(LambdaFleetError, match="running already"):
        fleet.start()
