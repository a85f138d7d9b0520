"""Cutting a text loses nothing, invents nothing, and prefers the better boundary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from articles.chunking import MAX_CHARACTERS, cut

TEXTS = st.text(st.sampled_from("ab .\n!\r'é界。\u2026😀"), max_size=300) | st.text(max_size=300)


@given(TEXTS, st.integers(1, 40))
def test_the_chunks_are_the_text_in_parts_that_fit(text, size):
    """Nothing is lost or repeated, and every chunk has 1 to max_characters characters."""
    chunks = cut(text, size)
    assert "".join(chunks) == text
    assert all(1 <= len(chunk) <= size for chunk in chunks)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Aaa. Bbbb.\n\nCcc. Ddd eee", "Aaa. Bbbb.\n\n"),
        ("Aaaa bbb. Ccc ddd eeee", "Aaaa bbb. "),
        ("Aaaa bbb ccc ddd eeee", "Aaaa bbb ccc "),
        ("Aaaabbbbccccddddeeee", "Aaaabbbbccccdddd"),
    ],
    ids=["paragraph", "sentence", "word", "nothing"],
)
def test_a_chunk_ends_at_the_best_boundary_in_the_second_half_of_the_room(text, first):
    """A paragraph's end is preferred to a sentence's, and that to a word's."""
    assert cut(text, 16)[0] == first


def test_a_long_text_without_a_boundary_is_cut_where_the_room_ends():
    """The longest text, in the worst case."""
    assert len(cut("x" * 200_000)) == 200_000 // MAX_CHARACTERS
