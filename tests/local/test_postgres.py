"""The embedded PostgreSQL."""


def test_database_is_the_tests_own(database):
    """A test's database is empty, belongs to the application's role, and shows who is connected."""
    import psycopg2

    assert database.backends() == []
    connection = psycopg2.connect(database.url(driver=""), application_name="web:1")
    assert [row["application_name"] for row in database.backends("web:")] == ["web:1"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (x int)")
    connection.close()
    database.wait_for_backends(0)
