"""The objects of a Kubernetes file: a List, as `kubectl get -o yaml` writes it, is its items."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.read.documents import Document, SourceLocation, ValuePath


def objects(document: Document) -> Iterator[Document]:
    """Give the items of a List, and of lists within it; any other document as it is.

    Raises:
        TemplateError: the items are no list of mappings.
    """
    kind = str(document.at("kind"))
    if not kind.endswith("List") or document.at("items") is None:
        yield document
        return
    found = document.mappings("items")
    lines: dict[ValuePath, dict[ValuePath, int]] = defaultdict(dict)
    elsewhere: dict[ValuePath, dict[ValuePath, SourceLocation]] = defaultdict(dict)
    for steps, line in document.lines.items():
        lines[steps[:2]][steps[2:]] = line
    for steps, where in document.elsewhere.items():
        elsewhere[steps[:2]][steps[2:]] = where
    # What the API itself answers, a DeploymentList, leaves the kind of its items out.
    implied = {"apiVersion": document.at("apiVersion"), "kind": kind.removesuffix("List")}
    for number, item in enumerate(found):
        steps = ("items", number)
        yield from objects(
            dataclasses.replace(
                document,
                data={**implied, **item},
                lines=lines[steps],
                elsewhere=elsewhere[steps],
            )
        )
