"""The plan: what would change, for a person to read before agreeing to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from poolkit.deploy.terminal import make_table, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from poolkit.deploy.change_set import Change, ChangeSet

HOLDS_DATA: Final = frozenset(
    {
        "AWS::DynamoDB::Table",
        "AWS::EFS::FileSystem",
        "AWS::KMS::Key",
        "AWS::RDS::DBCluster",
        "AWS::RDS::DBInstance",
        "AWS::S3::Bucket",
        "AWS::SQS::Queue",
        "AWS::SecretsManager::Secret",
    }
)
"""Types whose replacement or removal loses what they hold."""

_STYLES: Final = {
    "add": "green",
    "modify": "yellow",
    "replace": "bold red",
    "may replace": "bold magenta",
    "remove": "red",
}
_ORDER: Final = ("replace", "may replace", "remove", "modify", "add", "import")


def losses(change_set: ChangeSet) -> list[Change]:
    """Return the changes that would, or may, lose data."""
    harmless = {"add", "modify", "import"}
    return [
        change
        for change in change_set.changes
        if change.type in HOLDS_DATA and change.kind not in harmless
    ]


def print_plan(console: Console, change_set: ChangeSet) -> None:
    """Print the table of changes, the dangerous ones first, and the sum."""
    verb = "create" if change_set.is_new else "update"
    console.print(f"\nPlan: {verb} {change_set.stack}", style="bold")
    if not change_set.changes:
        console.print("no resource changes; parameters, outputs or tags do")
        return
    table = make_table("action", "resource", "type", "because of")
    for change in sorted(change_set.changes, key=_rank):
        style = _STYLES.get(change.kind, "")
        name = change.kind.upper() if "replace" in change.kind else change.kind
        table.add_row(name, change.logical_id, change.type, change.because, style=style)
    print_table(console, table)
    kinds = [change.kind for change in change_set.changes]
    sums = [f"{kinds.count(kind)} to {kind}" for kind in _ORDER if kind in kinds]
    console.print(", ".join(sums))
    for change in losses(change_set):
        console.print(
            f"{change.logical_id} ({change.type}) holds data that would be lost: "
            f"the plan says {change.kind}",
            style="bold red",
        )


def _rank(change: Change) -> tuple[int, str]:
    return _ORDER.index(change.kind), change.logical_id
