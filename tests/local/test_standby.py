"""The embedded PostgreSQL's hot standby."""

import psycopg2
import pytest
from psycopg2.errors import ReadOnlySqlTransaction

pytestmark = pytest.mark.process


def query(url, statement):
    connection = psycopg2.connect(url, connect_timeout=60)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def test_a_standby_follows_its_primary_until_it_is_promoted(new_postgres):
    """It answers reads, refuses writes, and accepts both after the promotion, also restarted."""
    with new_postgres() as primary, primary.standby() as standby:
        query(primary.url(driver=""), "CREATE TABLE t AS SELECT 42 AS n")
        standby.wait_until_caught_up()
        assert query(standby.url(driver=""), "SELECT n FROM t") == [(42,)]
        with pytest.raises(ReadOnlySqlTransaction):
            query(standby.url(driver=""), "INSERT INTO t VALUES (1)")

        primary.kill()
        standby.promote()
        query(standby.url(driver=""), "INSERT INTO t VALUES (1)")
        standby.restart()
        query(standby.url(driver=""), "INSERT INTO t VALUES (2)")
        assert query(standby.url(driver=""), "SELECT count(*) FROM t") == [(3,)]
