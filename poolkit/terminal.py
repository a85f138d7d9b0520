"""The terminal: one kind of rich console for every command."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from rich.console import Console

from poolkit.masking import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

__all__ = ("new_console",)


def new_console(**options: Any) -> Console:
    """Return a console that prints texts as they are, and lets no text control the terminal.

    Brackets are no markup and numbers have no colours of their own: names of files, targets and
    services are other people's. Their control characters are printed as question marks.

    Args:
        options: of rich's Console.
    """
    return _Console(markup=False, emoji=False, highlight=False, **options)


# GitHub Docs, "Workflow commands": `::name key=value::message`, and the older `##[name]message`.
_COMMAND = re.compile(r":(?=:[A-Za-z-]+(?: [^\n]*?)?::)|#(?=#\[)")


class _Console(Console):
    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of a renderable; rich's own control codes stay."""
        in_a_workflow = os.environ.get("GITHUB_ACTIONS") == "true"
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
                continue
            text = printable(segment.text)
            if in_a_workflow:
                # GitHub's runner would obey a line of another program that looks like a command.
                text = _COMMAND.sub("\\g<0>\u200b", text)
            yield segment._replace(text=text)
