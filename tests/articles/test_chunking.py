"""Cutting a text loses nothing, invents nothing, and prefers the better boundary."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from articles.chunking import MAX_CHARACTERS, OVERLAP, cut

TEXTS = st.text(st.sampled_from("ab .\n!\r'é界。\u2026😀"), max_size=300) | st.text(max_size=300)
SIZES = st.integers(1, 40).flatmap(
    lambda size: st.tuples(st.just(size), st.integers(0, (size - 1) // 2))
)


@given(TEXTS, SIZES)
def test_without_their_overlaps_the_chunks_are_the_text(text, sizes):
    """Each chunk stands in the text where it says, and what it adds makes up the whole text."""
    whole = ""
    for chunk in cut(text, *sizes):
        assert text[chunk.start :].startswith(chunk.text)
        whole += chunk.text[len(whole) - chunk.start :]
    assert whole == text


@given(TEXTS, SIZES)
def test_no_chunk_is_too_long_or_brings_nothing_new(text, sizes):
    """Every chunk has 1 to max_characters characters and ends later than the one before."""
    chunks = cut(text, *sizes)
    assert all(1 <= len(chunk.text) <= sizes[0] for chunk in chunks)
    ends = [chunk.start + len(chunk.text) for chunk in chunks]
    assert ends == sorted(set(ends))


@given(TEXTS, SIZES)
def test_no_overlap_is_longer_than_asked_for(text, sizes):
    """A chunk begins within `overlap` characters of the end of the one before, with no gap."""
    chunks = cut(text, *sizes)
    for before, after in pairwise(chunks):
        assert 0 <= before.start + len(before.text) - after.start <= sizes[1]


@given(TEXTS, SIZES)
def test_cutting_is_deterministic(text, sizes):
    """The same text and sizes give the same chunks, on which redelivery relies."""
    assert cut(text, *sizes) == cut(text, *sizes)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Aaa. Bbb.\n\nCcc. Ddd eee", "Aaa. Bbb.\n\n"),
        ("Aaaa bb. Ccc ddd eeee", "Aaaa bb. "),
        ("Aaaa bbb\nccc ddd eeee", "Aaaa bbb\n"),
        ("Aaaa bbb ccc ddd eeee", "Aaaa bbb ccc "),
        ("Aaaabbbbccccddddeeee", "Aaaabbbbccccdddd"),
        ("界界界界界界界界。界界界界界界界界界界", "界界界界界界界界。"),
        ("Aaaa bbb “cc.” Dddd eee", "Aaaa bbb “cc.” "),
    ],
    ids=["paragraph", "sentence", "line", "word", "hard", "cjk-sentence", "quoted-sentence"],
)
def test_a_chunk_ends_at_the_best_boundary_in_the_second_half_of_the_room(text, first):
    """A paragraph's end is preferred to a sentence's, that to a line's, that to a word's."""
    assert cut(text, 16, 0)[0].text == first


def test_an_overlap_begins_with_a_whole_word():
    """The repeated part starts after white space rather than inside a word."""
    texts = [chunk.text for chunk in cut("one two three four", 12, 5)]
    assert texts == ["one two ", "two three ", "four"]


def test_an_empty_text_has_no_chunks_and_a_short_one_has_one():
    """There is no empty chunk, and what fits is not cut."""
    assert cut("") == []
    assert [chunk.text for chunk in cut("short")] == ["short"]


@pytest.mark.parametrize(("size", "overlap"), [(10, 5), (10, -1), (0, 0), (-1, 0)])
def test_sizes_that_could_not_advance_are_refused(size, overlap):
    """An overlap of half the room or more is refused, and so is no room at all."""
    with pytest.raises(ValueError, match="overlap must be 0 or more"):
        cut("text", size, overlap)


def test_a_long_text_is_cut_in_linear_time():
    """The longest text without any boundary, the worst case, gives the expected count."""
    chunks = cut("x" * 200_000)
    assert len(chunks) == -(-(200_000 - OVERLAP) // (MAX_CHARACTERS - OVERLAP))
