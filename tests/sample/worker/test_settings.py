"""WORKER_* variables."""

import os
from pathlib import Path

import pytest

from poolkit.errors import ConfigurationError
from worker.settings import WorkerSettings

REDIS = {"WORKER_BROKER_URL": "redis://:hidden@localhost:6379/0"}


def test_defaults_need_only_a_broker():
    """With a broker's URL alone, everything else has a value that fits the rest."""
    settings = WorkerSettings.from_environ(REDIS)
    assert settings.pool == "prefork"
    assert settings.visibility_timeout > settings.task_time_limit + settings.retry_backoff_max


def test_each_variable_is_read_as_its_field_s_type():
    """Numbers, words and paths arrive as such."""
    words = {"WORKER_CONCURRENCY": " 7 ", "WORKER_RETRY_BACKOFF": "0.5", "WORKER_QUEUE": "other"}
    settings = WorkerSettings.from_environ(REDIS | words | {"WORKER_READY_FILE": "/tmp/ready"})
    assert (settings.concurrency, settings.retry_backoff) == (7, 0.5)
    assert (settings.ready_file, settings.queue) == (Path("/tmp/ready"), "other")


def test_repr_shows_no_password():
    """The broker's URL is not in the settings' representation."""
    assert "hidden" not in repr(WorkerSettings.from_environ(REDIS))


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "WORKER_BROKER_URL is not set"),
        (REDIS | {"WORKER_CONCURRENCY": "many"}, "WORKER_CONCURRENCY: .* a valid integer"),
        (REDIS | {"WORKER_CONCURRENCY": "0"}, "WORKER_CONCURRENCY: .* greater than or equal to 1"),
        (REDIS | {"WORKER_RETRY_BACKOFF": "nan"}, "WORKER_RETRY_BACKOFF: .* finite"),
        (REDIS | {"WORKER_POOL": "gevent"}, "WORKER_POOL: .*'prefork', 'threads' or 'solo'"),
        (REDIS | {"WORKER_LOG_LEVEL": "loud"}, "WORKER_LOG_LEVEL: .*'DEBUG'"),
        (REDIS | {"WORKER_TASK_SOFT_TIME_LIMIT": "300"}, "must be less than WORKER_TASK_TIME"),
        (REDIS | {"WORKER_VISIBILITY_TIMEOUT": "360"}, "must exceed WORKER_TASK_TIME_LIMIT"),
        (
            {"WORKER_BROKER_URL": "sqs://", "WORKER_REMOTE_CONTROL": "true"},
            "WORKER_REMOTE_CONTROL must be false with SQS",
        ),
        (REDIS | {"WORKER_CONCURENCY": "9"}, "did you mean WORKER_CONCURRENCY"),
    ],
)
def test_wrong_values_are_refused_by_name(environ, words):
    """A missing, malformed or contradictory value names its variable and what is allowed."""
    with pytest.raises(ConfigurationError, match=words):
        WorkerSettings.from_environ(environ)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_ready_file_never_replaces_a_folder_or_a_device(tmp_path, make):
    """The file is replaced each second, and as root that would replace /dev/null, too."""
    make(tmp_path / "ready")
    environ = REDIS | {"WORKER_READY_FILE": str(tmp_path / "ready")}
    with pytest.raises(ConfigurationError, match=r"WORKER_READY_FILE: .*/ready is not a regular"):
        WorkerSettings.from_environ(environ)


def test_variables_that_are_like_no_setting_are_passed_over():
    """Kubernetes adds such for a service that is called worker."""
    added = {"WORKER_SERVICE_HOST": "10.0.0.1", "WORKER_PORT": "tcp://10.0.0.1:80"}
    assert WorkerSettings.from_environ(REDIS | added) == WorkerSettings.from_environ(REDIS)


def test_rabbitmq_has_no_visibility_timeout_to_check():
    """RabbitMQ redelivers when a connection ends, not after a time."""
    WorkerSettings.from_environ({"WORKER_BROKER_URL": "amqp://x", "WORKER_VISIBILITY_TIMEOUT": "1"})
