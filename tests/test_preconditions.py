"""If-Match, as RFC 9110 describes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.preconditions import matches


@pytest.mark.parametrize(
    ("if_match", "is_match"),
    [
        *(('"1"', True), ("*", True), (" * ", True), ('"0", "1"', True), (',, "1" ,', True)),
        *(('"a,b", "1"', True), ('"a" , W/"1", "1"', True)),
        *(('W/"1"', False), ('w/"1"', False), ('"2"', False), ('"1', False), ("1", False)),
        *(("", False), ('"1" "2"', False), ('*, "1"', False), ('"1", x', False), ('""', False)),
    ],
)
def test_tags_are_compared_strongly(if_match, is_match):
    """A weak tag matches nothing, and neither does a header that is malformed."""
    assert matches(if_match, '"1"') is is_match


@given(st.text(alphabet='W/"1*, \tx\x80\u0100', max_size=40))
def test_any_header_has_an_answer(if_match):
    """It is a tag of the list, a star, or no match."""
    if matches(if_match, '"1"'):
        assert '"1"' in if_match or if_match.strip(" \t") == "*"
