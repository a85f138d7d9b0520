"""Cuts a text into chunks of bounded size, at the best boundary in reach.

Lengths are in characters (Unicode code points), as `len` counts them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_CHARACTERS = 1_000
OVERLAP = 100

# From the best place to cut to the worst. A cut comes after the match, so the white space
# of a boundary stays with the chunk before it.
_BOUNDARIES = (
    re.compile(r"(?:\r?\n){2,}"),
    # Also the ellipsis, closing quotation marks, and the CJK full stops (U+3002, U+FF01,
    # U+FF1F), which no white space follows.
    re.compile("[.!?\u2026][\"'\u201d\u2019\u00bb)\\]]*\\s+|[\u3002\uff01\uff1f]"),
    re.compile(r"\n"),
    re.compile(r"\s"),
)
_WHITE_SPACE = re.compile(r"\s")


class Chunk(NamedTuple):
    """A part of a text, and the offset in the text at which it starts."""

    start: int
    text: str


def cut(text: str, max_characters: int = MAX_CHARACTERS, overlap: int = OVERLAP) -> list[Chunk]:
    """Cut `text` into chunks of at most `max_characters`, in order; an empty text has none.

    Each chunk ends after a paragraph, else a sentence, else a line, else a word, if one ends in the
    second half of the room. A longer word is cut where the room ends. Each chunk but the first
    repeats up to `overlap` characters from the end of the one before. The repetition begins at a
    word if possible. Nothing else is repeated, and nothing is lost:
    `text[chunk.start:][:len(chunk.text)] == chunk.text` for each chunk.

    Raises:
        ValueError: `overlap` is negative or not less than half of `max_characters`.
    """
    if not 0 <= overlap * 2 < max_characters:
        raise ValueError(
            f"overlap must be 0 or more and less than half of max_characters "
            f"({max_characters}), not {overlap}"
        )
    chunks = []
    end = 0
    while end < len(text):
        start = max(end - overlap, 0)
        if start and not text[start - 1].isspace():
            # In the middle of a word: the overlap begins with the next one, if there is one.
            space = _WHITE_SPACE.search(text, start, end)
            start = space.end() if space else start
        latest = start + max_characters
        end = min(latest, len(text))
        if latest < len(text):
            # Half of the room is more than the overlap, so every chunk ends later than the last.
            earliest = start + (max_characters + 1) // 2
            for boundary in _BOUNDARIES:
                ends = [match.end() for match in boundary.finditer(text, start, latest)]
                if ends and ends[-1] >= earliest:
                    end = ends[-1]
                    break
        chunks.append(Chunk(start, text[start:end]))
    return chunks
