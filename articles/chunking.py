"""Cuts a text into chunks of bounded size, at the best boundary in reach."""

import re

MAX_CHARACTERS = 1_000

# From the best place to cut to the worst: after a paragraph, a sentence, a word.
_BOUNDARIES = [re.compile(pattern) for pattern in (r"\n{2,}", r"[.!?]\s+", r"\s+")]


def cut(text: str, max_characters: int = MAX_CHARACTERS) -> list[str]:
    """Cut `text` into chunks, in order; `"".join(chunks) == text`, and an empty text has none.

    Each chunk ends at the last of the best boundaries in the second half of its room.
    """
    chunks = []
    start = 0
    while len(text) - start > max_characters:
        middle, end = start + (max_characters + 1) // 2, start + max_characters
        for boundary in _BOUNDARIES:
            ends = [match.end() for match in boundary.finditer(text, middle, end)]
            if ends:
                end = ends[-1]
                break
        chunks.append(text[start:end])
        start = end
    return [*chunks, text[start:]] if text else []
