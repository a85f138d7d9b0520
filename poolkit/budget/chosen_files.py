"""Which files an environment deploys: its templates, and whatever else was named.

An environment's file has a table for each template that it deploys. A compose file beside them,
or manifests, are the same services deployed in another way, not more of them. What is left out
for that is listed: who named it meant it, and who did not can see that it is not in the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.budget.cloudformation.templates import named_by_others
from poolkit.budget.files import Files
from poolkit.budget.inventory import NotCounted
from poolkit.budget.kubernetes.pod_containers import has_pods

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from poolkit.budget.read.documents import Document
    from poolkit.budget.read.parameters import Environment


def of_environment(
    files: Files, environment: Environment, paths: Iterable[Path]
) -> tuple[Files, tuple[NotCounted, ...]]:
    """Return the files that an environment deploys, and those that it does not.

    A file that was named belongs to it, and so does what is in a folder that was named and has
    none of the environment's templates.
    """
    if not environment.file:
        return files, ()
    deployed = _deployed(files.templates, environment)
    named = _named(paths, deployed)

    def belongs(document: Document) -> bool:
        own = document.path.resolve()
        return own in deployed or own in named or bool(named & set(own.parents))

    chosen = Files(
        templates=[each for each in files.templates if belongs(each)],
        compose=[each for each in files.compose if belongs(each)],
        kubernetes=[each for each in files.kubernetes if belongs(each)],
    )
    return chosen, tuple(_left_out(files, chosen, environment))


def _deployed(templates: Iterable[Document], environment: Environment) -> set[Path]:
    """Find the template of each table, and those nested in others; of two names the first."""
    found: dict[str, Path] = {}
    for document in templates:
        found.setdefault(document.path.name.split(".")[0], document.path.resolve())
    deployed = {path for name, path in found.items() if name in environment.tables}
    return deployed | named_by_others(templates)


def _named(paths: Iterable[Path], deployed: set[Path]) -> set[Path]:
    """Return the files, and the folders that are there for something else than the templates."""
    inside = {folder for template in deployed for folder in template.parents}
    return {path.resolve() for path in paths} - inside


def _left_out(files: Files, chosen: Files, environment: Environment) -> Iterator[NotCounted]:
    no_table, other_way = "the environment has no table for it", "the environment deploys templates"
    pods = [document for document in files.kubernetes if has_pods(document)]
    kinds = (
        ("template", files.templates, chosen.templates, no_table),
        ("compose file", files.compose, chosen.compose, other_way),
        ("Kubernetes manifest", pods, chosen.kubernetes, other_way),
    )
    for platform, found, kept, why in kinds:
        counted = {document.file for document in kept}
        for file in dict.fromkeys(each.file for each in found if each.file not in counted):
            yield NotCounted(
                name=file,
                platform=platform,
                where=environment.file,
                reason=f"{why}; name it to count it as well",
            )
