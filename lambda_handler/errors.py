"""Every exception of the Lambda functions.

UnknownEvent   also a ValueError: an event of a kind that the function does not handle
"""

from __future__ import annotations


class UnknownEvent(ValueError):
    """The function was invoked with an event of a kind that it does not handle."""

    def __init__(self, wanted: str, event: object) -> None:
        super().__init__(wanted, event)
        self.wanted = wanted
        self.event = event

    def __str__(self) -> str:
        if isinstance(self.event, dict):
            found = f"an object with the members {', '.join(map(str, self.event)) or 'none'}"
        else:
            found = f"a {type(self.event).__name__}"
        return (
            f"wanted {self.wanted}, found {found[:500]}; "
            "connect the function to one of these, or invoke it with such an event"
        )
