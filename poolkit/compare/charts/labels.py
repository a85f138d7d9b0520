"""Labels that would cover each other, moved apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Return positions at least `gap` apart, near the wanted ones and in their order.

    Positions that touch are joined into a block, which is centred on what its members
    wanted; blocks that touch are joined again. The result stays between `low` and `high`
    as long as there is room for all.
    """

    def start(block: Sequence[int]) -> float:
        length = (len(block) - 1) * gap
        centre = sum(wanted[i] for i in block) / len(block)
        return max(low, min(centre - length / 2, high - length))

    blocks: list[list[int]] = []
    for index in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        blocks.append([index])
        while len(blocks) > 1 and start(blocks[-1]) < start(blocks[-2]) + len(blocks[-2]) * gap:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = {i: start(block) + n * gap for block in blocks for n, i in enumerate(block)}
    return [placed[i] for i in range(len(wanted))]
