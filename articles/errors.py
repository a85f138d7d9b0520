"""The errors of the domain.

Each passes its arguments on to `Exception`, so that it survives pickling: a Celery child sends it to
its parent process.
"""


class NotFound(LookupError):
    """There is no `kind` (an article, a document) with this `key`."""

    def __init__(self, kind: str, key: int | str) -> None:
        super().__init__(kind, key)
        self.kind = kind
        self.key = key

    def __str__(self) -> str:
        return f"there is no {self.kind} {self.key}"


class PreconditionFailed(Exception):
    """The article has `current` as its version, and the caller's precondition excludes it."""

    def __init__(self, article_id: int, current: int) -> None:
        super().__init__(article_id, current)
        self.article_id = article_id
        self.current = current

    def __str__(self) -> str:
        return (
            f"article {self.article_id} has version {self.current}, which If-Match does not list: "
            "read it again, and merge your change"
        )


class StaleVersion(Exception):
    """The article has `current` as its version by now; the caller had read `expected`."""

    def __init__(self, article_id: int, expected: int, current: int) -> None:
        super().__init__(article_id, expected, current)
        self.article_id = article_id
        self.expected = expected
        self.current = current

    def __str__(self) -> str:
        return (
            f"article {self.article_id} has version {self.current}, not {self.expected}: "
            "read it again, merge your change, and send it with that version"
        )
