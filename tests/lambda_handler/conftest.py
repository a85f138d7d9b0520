"""What the Lambda functions' tests share: AWS Secrets Manager, as moto serves it."""

import json

import boto3
import pytest


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
def secrets_manager(served_aws: dict[str, str]) -> SecretsManager:
    """Give the Secrets Manager that boto3 finds."""
    return SecretsManager()
