"""Other programs' statements: their literals stay out, their comments are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.activity.statements import comment_of, shown


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("SELECT * FROM t1 WHERE a2 = 3 AND b = 'x''y'", "SELECT * FROM t1 WHERE a2 = ? AND b = ?"),
        ("SELECT 1 WHERE id IN (1, 2,\n 3)", "SELECT ? WHERE id IN (?, ...)"),
        ('SELECT $1, "it\'s", t.c1', 'SELECT $1, "it\'s", t.c1'),
        (r"SELECT E'it\'s secret', x", "SELECT ?, x"),
        ("SELECT $$a 'secret'$$, $b$c $$ d$b$, x'1f', U&'d', -1.5e-3", "SELECT ?, ..., -?"),
        ("ALTER ROLE me PASSWORD 'secret'", "ALTER ROLE me PASSWORD ?"),
        ("SELECT a -- of 'me'\n, /* b /* c */ secret */ d", "SELECT a , d"),
        # The server has cut these.
        ("SELECT 'secr", "SELECT ?"),
        ("SELECT E'secret\\", "SELECT ?"),
        ("SELECT $x$secr", "SELECT ?"),
        ("SELECT 2 /* secr", "SELECT ?"),
        # Where the first literal ends depends on standard_conforming_strings, which is not known.
        (r"SELECT 'it\'s', 'secret' , 'x'", "SELECT ? ..."),
        ("", ""),
    ],
)
def test_a_statement_is_shown_without_its_literals(statement, text):
    """Names and parameters stay."""
    assert shown(statement) == text


@pytest.mark.parametrize("quote", ["'{}'", "E'{}'", "$${}$$", "$q${}$q$", "/*{}*/", "--{}\n"])
@given(
    before=st.text('ab,(=<>;$"-1 \n'),
    secret=st.text("xyz", min_size=8),
    cut=st.integers(0, 3),
)
def test_no_literal_survives_whatever_stands_before_it(quote, before, secret, cut):
    """A name in double quotes or a parameter without an end may swallow it; nothing else does."""
    if before.count('"') % 2 or before.endswith(("$", "-")) or "--" in before or "$$" in before:
        return
    literal = quote.format(secret)
    assert secret[:8] not in shown(f"{before} {literal[: len(literal) - cut]}")


def test_control_characters_reach_no_terminal():
    """Neither those of a statement nor those of a comment."""
    assert all(map(str.isprintable, shown("SELECT \x1b[2J\r\n\x9b a")))
    assert comment_of("SELECT 1 /*where='a%1B%5B2J%0Ab'*/") == {"where": "a?[2J b"}


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (
            """SELECT * FROM FOO /*action='%2Fparam*d',controller='index',framework='spring',
            tracestate='congo%3Dt61rcWkgMzE%2Crojo%3D00f067aa0ba902b7'*/""",
            {
                "action": "/param*d",
                "controller": "index",
                "framework": "spring",
                "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
            },
        ),
        # A quote has a backslash, in keys too.
        (r"SELECT 1 /*name\'\'='DROP%20TABLE%20USERS\''*/", {"name''": "DROP TABLE USERS'"}),
        # The last comment; one in front is the last if there is no other.
        ("/*a='1'*/ SELECT 1 /*b='2'*/;", {"b": "2"}),
        ("/*route='%2Fx'*/ SELECT 1", {"route": "/x"}),
        # A comment in a literal is none.
        ("SELECT '/*a=''1''*/'", {}),
        ("SELECT 1 /* words, no pairs */", {}),
        ("SELECT 1 -- a='1'", {}),
        # Cut by the server: the complete pairs.
        ("SELECT 1 /*unit='GET%20/o',where='app/vi", {"unit": "GET /o"}),
        ("SELECT 1", {}),
    ],
)
def test_comments_in_sqlcommenter_s_format_are_read(statement, found):
    """As its specification has it."""
    assert comment_of(statement) == found
