"""Secrets never reach a report, a log or a terminal, whatever characters they have."""

import json
import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolkit.masking import masked, printable

SECRET = "C4N4RY"
# What surrounds the secret inside a password: anything that fits on a line.
around = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)
schemes = st.sampled_from(
    ["postgresql", "postgres", "postgresql+asyncpg", "redis", "amqps", "mysql"]
)
hosts = st.sampled_from(["db", "db:5432", "[::1]:5432", "db.example.com", "127.0.0.1:1,h2:2", ""])
tails = st.sampled_from(["", "/app", "/app?sslmode=require", "?host=/tmp", "/app#x"])


@given(schemes, around, around, hosts, tails)
@example("postgresql", "1/ ", "", "db", "/app")
@example("postgresql", "a@b/", "@h:1/ ", "db", "/app")
def test_the_password_of_a_url_is_masked_without_being_escaped(scheme, left, right, host, tail):
    url = f"{scheme}://user:{left}{SECRET}{right}@{host}{tail}"
    assert SECRET not in masked(url)
    assert masked(url).startswith(f"{scheme}://user:***@")


@given(schemes, around, around, hosts)
def test_a_url_in_quotes_ends_with_its_quotes(scheme, left, right, host):
    """What follows stays, so that a command line can still be read."""
    password = f"{left}{SECRET}{right}".replace("'", "")
    line = f"poolkit compare --database-url '{scheme}://user:{password}@{host}/app' --out 'x@y'"
    assert SECRET not in masked(line)
    assert masked(line).endswith("/app' --out 'x@y'")


@pytest.mark.parametrize(
    "name", ["password", "sslpassword", "PASSWORD", "pwd", "secret", "token", "access_key"]
)
@given(value=st.text("abcXYZ019%+/=.-_~@:", max_size=10))
def test_a_secret_parameter_of_a_url_is_masked(name, value):
    url = f"postgresql://db:5432/app?user=u&{name}={value}{SECRET}&sslmode=require"
    assert SECRET not in masked(url)
    assert masked(url).endswith("&sslmode=require")


@given(around, around)
def test_a_connection_string_of_libpq_is_masked(left, right):
    quoted = f"{left}{SECRET}{right}".replace("\\", "\\\\").replace("'", "\\'")
    line = f"host=db password='{quoted}' user=app"
    assert SECRET not in masked(line)
    assert masked(line).endswith(" user=app")


@given(around, around)
def test_json_with_a_password_stays_json(left, right):
    text = json.dumps({"password": f"{left}{SECRET}{right}", "user": "app"})
    assert SECRET not in masked(text)
    assert json.loads(masked(text)) == {"password": "***", "user": "app"}


@pytest.mark.parametrize(
    "text",
    [
        f"PGPASSWORD={SECRET} psql -h db",
        f"DB_PASSWORD: missing; DB_PASSWORD={SECRET}",
        f"psql --password {SECRET} -h db",
        f"redis://:{SECRET}@broker:6379/0",
        f"https://{SECRET}@forge.example/x.git",
        f"first postgresql://a:b@c/d then postgresql://u:{SECRET}@h/db",
        f"CONNECT postgresql://u:{SECRET}/x@h/db\nnext line",
        shlex.join(["psql", f"postgresql://u:{SECRET} $x@h/db"]),
    ],
)
def test_other_forms_are_masked(text):
    assert SECRET not in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/articles failed",
        "http://127.0.0.1:8000/ failed: write to admin@example.com",
        "postgresql://user@db:5432/app",
        "postgresql://{{db_user}}:{{db_password}}@{{db_host}}/app",
        "the password was refused",
        "3 tokens, password_authentication failed for user",
        "postgresql://u:***@db/app",
    ],
)
def test_what_is_no_secret_stays(text):
    assert masked(text) == text


@given(st.text())
def test_masking_twice_is_masking_once(text):
    once = masked(text)
    assert masked(once) == once


def test_a_long_line_takes_no_long_time():
    for piece in ("a-", "://", "password", "u:p@", "='", "{{", "x://", "x://a:b@c ", "?token=@"):
        masked(piece * 40_000)


@given(st.text())
def test_printable_text_has_no_control_character(text):
    shown = printable(text, one_line=True)
    assert all(
        character.isprintable() or character == " " for character in shown if ord(character) < 0xA0
    )
    assert "\n" not in shown
    assert not set("\x1b\x9b\u202e\u2028\r\x07") & set(printable(text))
