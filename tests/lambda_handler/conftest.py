"""What the Lambda functions' tests share: AWS Secrets Manager, as moto serves it."""

import json
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer


class SecretsManager:
    """Secrets in the JSON that RDS manages."""

    def __init__(self) -> None:
        self.client = boto3.client("secretsmanager")

    def create(self, user: str, password: str) -> str:
        made = self.client.create_secret(Name=user, SecretString=_secret(user, password))
        return made["ARN"]

    def rotate(self, arn: str, user: str, password: str) -> None:
        self.client.put_secret_value(SecretId=arn, SecretString=_secret(user, password))


def _secret(user: str, password: str) -> str:
    return json.dumps({"username": user, "password": password})


@pytest.fixture
def secrets_manager(monkeypatch) -> Iterator[SecretsManager]:
    """Serve Secrets Manager on a loopback port, and let boto3 find it there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield SecretsManager()
    finally:
        server.stop()
