"""A password that is rotated while requests come: no request fails."""

import json
import operator
import secrets
import threading
import time

import boto3
import pytest
from processes import wait_until
from psycopg2 import sql

from poolkit.local.postgres import APP_ROLE


class RotatedRole:
    """A role whose password is rotated as AWS does it: pending, set, current."""

    def __init__(self, database):
        self.name = f"rotated_{secrets.token_hex(4)}"
        self._database = database
        self._secrets = boto3.client("secretsmanager")
        password = secrets.token_hex(16)
        self._execute("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}", password, APP_ROLE)
        created = self._secrets.create_secret(Name=self.name, SecretString=self._json(password))
        self.arn, self._version = created["ARN"], created["VersionId"]

    def rotate(self):
        password = secrets.token_hex(16)
        version = self._secrets.put_secret_value(
            SecretId=self.arn, SecretString=self._json(password), VersionStages=["AWSPENDING"]
        )["VersionId"]
        self._execute("ALTER ROLE {} PASSWORD {}", password)
        time.sleep(0.2)  # the time between "set" and "finish", when AWSCURRENT is out of date
        self._secrets.update_secret_version_stage(
            SecretId=self.arn,
            VersionStage="AWSCURRENT",
            MoveToVersionId=version,
            RemoveFromVersionId=self._version,
        )
        self._version = version

    def drop(self):
        self._execute("DROP ROLE {}")

    def close(self):
        self._secrets.close()

    def _json(self, password):
        return json.dumps({"username": self.name, "password": password})

    def _execute(self, statement, password=None, member_of=None):
        parts = [sql.Identifier(self.name)]
        parts += [sql.Literal(password)] if password else []
        parts += [sql.Identifier(member_of)] if member_of else []
        self._database.execute(sql.SQL(statement).format(*parts))


@pytest.fixture
def role(served_aws, migrated_database):
    rotated = RotatedRole(migrated_database)
    yield rotated
    rotated.drop()
    rotated.close()


def test_a_rotation_during_traffic_fails_no_request(serve, served_aws, role, migrated_database):
    """While requests log in anew, the password changes three times: all answer 200."""
    server = migrated_database.server
    variables = {
        **served_aws,
        "DATABASE_SECRET_ARN": role.arn,
        "DATABASE_HOST": server.host,
        "DATABASE_PORT": str(server.port),
        "DATABASE_NAME": migrated_database.name,
        "DATABASE_SSLMODE": "disable",
        # Of four requests at once, three log in anew: overflow connections are not kept.
        "POOLKIT_POOL_SIZE": "1",
    }
    answers, done = [[] for _ in range(4)], threading.Event()
    with serve("", **variables) as served:

        def traffic(statuses):
            # The pause leaves the processors to the service and to the rotation.
            while not done.wait(0.01):
                statuses.append(served.get("/articles"))

        clients = [threading.Thread(target=traffic, args=(statuses,)) for statuses in answers]
        for client in clients:
            client.start()
        try:
            for _ in range(3):
                role.rotate()
                # Of each client: a request that outlasts two rotations has two old passwords.
                wanted, opened = [len(each) + 5 for each in answers], served.metric("opened_total")

                def has_gone_on(wanted=wanted, opened=opened):
                    assert all(client.is_alive() for client in clients)
                    # The metric is read last: it costs a request.
                    has_answers = all(map(operator.ge, map(len, answers), wanted))
                    return has_answers and served.metric("opened_total") >= opened + 5

                wait_until(has_gone_on, "five more requests of each client")
        finally:
            done.set()
            for client in clients:
                client.join()
        assert served.metric("connect_failures_total") == 0
    assert all(set(statuses) == {200} for statuses in answers)
