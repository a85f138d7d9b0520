"""Change sets: the changes of a deployment, computed by AWS and printed before they are made."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from poolkit.deploy.aws import DENIED, error_code, in_plain_words
from poolkit.deploy.parameters import as_arguments
from poolkit.deploy.progress import make_table, pauses, print_table
from poolkit.deploy.stacks import find_stack
from poolkit.deploy.statuses import REVIEW, require_accepted
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from rich.console import Console

CAPABILITIES: Final = ("CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND")
"""Roles are made, which the plan shows, and the SAM transform is run."""

TIME_LIMIT: Final = 300.0
"""Seconds that AWS may take to compute a change set."""

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

HAS_PUBLIC_NAME: Final = frozenset(
    {
        "AWS::ApiGateway::DomainName",
        "AWS::ApiGateway::RestApi",
        "AWS::ApiGatewayV2::Api",
        "AWS::ApiGatewayV2::DomainName",
        "AWS::CloudFront::Distribution",
        "AWS::EC2::EIP",
        "AWS::ElasticLoadBalancing::LoadBalancer",
        "AWS::ElasticLoadBalancingV2::LoadBalancer",
        "AWS::GlobalAccelerator::Accelerator",
        "AWS::Lambda::Url",
        "AWS::Route53::HostedZone",
    }
)
"""Types whose replacement or removal changes a name or an address that clients, DNS records or
firewalls of others may have."""

Kind = Literal["add", "modify", "replace", "may replace", "remove", "import"]

_OVERTAKEN: Final = frozenset(
    {"ChangeSetNotFound", "ChangeSetNotFoundException", "InvalidChangeSetStatus"}
)
"""Errors of ExecuteChangeSet after another one was executed, which deletes all others."""

_HARMLESS: Final = frozenset({"add", "modify", "import"})
_ORDER: Final = ("replace", "may replace", "remove", "modify", "add", "import")
_STYLES: Final = {
    "add": "green",
    "modify": "yellow",
    "replace": "bold red",
    "may replace": "bold magenta",
    "remove": "red",
}


class Change(NamedTuple):
    """The change of one resource."""

    kind: Kind
    logical_id: str
    type: str
    because: str
    """The properties that change; empty where AWS does not name them."""

    @classmethod
    def read(cls, found: dict[str, Any]) -> Change:
        """Return a change from AWS's ResourceChange."""
        targets = [detail.get("Target", {}) for detail in found.get("Details", ())]
        names = {target.get("Name") or target.get("Attribute") for target in targets}
        # "Dynamic", as an action or a replacement: AWS decides only while it executes.
        kinds: dict[str, Kind] = {"Add": "add", "Remove": "remove", "Import": "import"}
        kind = kinds.get(found["Action"], "may replace")
        if found["Action"] == "Modify":
            replacements: dict[Any, Kind] = {"True": "replace", "Conditional": "may replace"}
            kind = replacements.get(found.get("Replacement"), "modify")
        return cls(
            kind=kind,
            logical_id=found["LogicalResourceId"],
            type=found["ResourceType"],
            because=", ".join(sorted(name for name in names if name)),
        )


@dataclass(frozen=True, kw_only=True)
class StackRequest:
    """The desired state of a stack."""

    name: str
    target: str
    """The arguments of `poolkit deploy` that name it."""
    template: dict[str, str] = field(repr=False)
    """TemplateBody or TemplateURL."""
    parameters: dict[str, str]
    """A masked secret keeps the value that the stack has."""
    tags: dict[str, str]
    role: str = ""
    """The ARN of the role that CloudFormation works with; empty: the caller's rights."""
    topics: tuple[str, ...] = ()
    """The ARNs of the SNS topics that get the stack's events."""


@dataclass(frozen=True, kw_only=True)
class ChangeSet:
    """A change set that AWS has computed and not executed."""

    stack: str
    target: str
    """The arguments of `poolkit deploy` that name the stack."""
    stack_id: str
    id: str
    is_new: bool
    changes: tuple[Change, ...]

    @property
    def undo(self) -> str:
        """The command that undoes its execution; a new stack has nothing to go back to."""
        if self.is_new:
            return f"poolkit destroy {self.target}"
        return f"poolkit deploy {self.target} --rollback"

    @property
    def losses(self) -> list[Change]:
        """The changes that would, or may, lose data."""
        return self._harmed(HOLDS_DATA)

    @property
    def new_names(self) -> list[Change]:
        """The changes that would, or may, give a public resource another name or address."""
        return self._harmed(HAS_PUBLIC_NAME)

    def _harmed(self, types: frozenset[str]) -> list[Change]:
        return [
            change
            for change in self.changes
            if change.type in types and change.kind not in _HARMLESS
        ]


def prepare(cloudformation: Any, request: StackRequest) -> ChangeSet | None:
    """Return what a deployment would do, computed by AWS; None if nothing would change.

    Raises:
        DeployError: the stack cannot be changed now, or AWS refuses the template or a
            parameter. Nothing is left behind then.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    stack = find_stack(cloudformation, request.name)
    if stack is not None:
        require_accepted(stack, "deploy", request.target)
    is_new = stack is None or stack["StackStatus"] == REVIEW
    with in_plain_words(f"planning {request.name}"):
        try:
            created = cloudformation.create_change_set(
                StackName=request.name,
                ChangeSetName=f"poolkit-{uuid.uuid4().hex}",
                ChangeSetType="CREATE" if is_new else "UPDATE",
                Capabilities=list(CAPABILITIES),
                Parameters=as_arguments(request.parameters),
                Tags=[
                    {"Key": name, "Value": value} for name, value in sorted(request.tags.items())
                ],
                NotificationARNs=list(request.topics),
                **({"RoleARN": request.role} if request.role else {}),
                **request.template,
            )
        except ClientError as error:
            if _holds_no_change(str(error)):
                return None
            raise
    change_set = ChangeSet(
        stack=request.name,
        target=request.target,
        stack_id=created["StackId"],
        id=created["Id"],
        is_new=is_new,
        changes=(),
    )
    try:
        changes = _wait(cloudformation, change_set)
    except BaseException:
        discard(cloudformation, change_set)
        raise
    if changes is None:
        discard(cloudformation, change_set)
        return None
    return replace(change_set, changes=changes)


def _holds_no_change(reason: str) -> bool:
    """Whether AWS refuses a change set because it is empty: there is a text for it, and no code."""
    texts = ("didn't contain changes", "No updates are to be performed")
    return any(text in reason for text in texts)


def _wait(cloudformation: Any, change_set: ChangeSet) -> tuple[Change, ...] | None:
    """Return the changes once AWS has computed them, None if there are none."""
    names = {"ChangeSetName": change_set.id, "StackName": change_set.stack_id}
    for _ in pauses(TIME_LIMIT):
        with in_plain_words(f"planning {change_set.stack}"):
            page = cloudformation.describe_change_set(**names)
            status, reason = page["Status"], page.get("StatusReason", "")
            if status == "CREATE_COMPLETE":
                found = page.get("Changes", [])
                while page.get("NextToken"):
                    page = cloudformation.describe_change_set(**names, NextToken=page["NextToken"])
                    found += page.get("Changes", [])
                return tuple(Change.read(each["ResourceChange"]) for each in found)
        if status == "FAILED":
            if _holds_no_change(reason):
                return None
            raise DeployError(f"AWS cannot plan {change_set.stack}: {reason}")
    raise DeployError(f"AWS has not planned {change_set.stack} within {TIME_LIMIT:.0f} s")


def discard(cloudformation: Any, change_set: ChangeSet) -> None:
    """Remove a change set, and the stack that exists only for it.

    Another deployment may plan the same new stack, or create it already. Then the stack is its.
    """
    from botocore import exceptions  # noqa: PLC0415 - 60 ms

    with in_plain_words(f"discarding the plan of {change_set.stack}"):
        cloudformation.delete_change_set(ChangeSetName=change_set.id)
        if not change_set.is_new:
            return
        stack = find_stack(cloudformation, change_set.stack_id)
        others = cloudformation.list_change_sets(StackName=change_set.stack_id)["Summaries"]
        # AWS removes a change set within seconds, and lists it until then.
        others = [each for each in others if each["ChangeSetId"] != change_set.id]
        if stack is None or stack["StackStatus"] != REVIEW or others:
            return
        try:
            cloudformation.delete_stack(StackName=change_set.stack_id)
        except exceptions.ClientError as error:
            # A role that may only plan deletes no stack. An empty one costs nothing, and the next
            # deployment creates it.
            if error_code(error) not in DENIED:
                raise


def execute(cloudformation: Any, change_set: ChangeSet) -> None:
    """Start the change.

    Raises:
        DeployError: AWS refuses, for example because another deployment began after the plan; or
            it did not answer, so that the change may have begun.
    """
    from botocore import exceptions  # noqa: PLC0415 - 60 ms

    with in_plain_words(f"beginning with {change_set.stack}"):
        try:
            cloudformation.execute_change_set(
                ChangeSetName=change_set.id,
                StackName=change_set.stack_id,
                # A request that is repeated because its answer was lost begins nothing twice.
                ClientRequestToken=f"poolkit-{uuid.uuid4().hex}",
            )
        except exceptions.ClientError as error:
            if error_code(error) not in _OVERTAKEN:
                raise
            raise DeployError(
                f"another change of {change_set.stack} was made after this plan, which is void "
                f"now. Next: poolkit status {change_set.target} --wait, then plan again"
            ) from None
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
            raise DeployError(
                f"beginning with {change_set.stack}: {error}. AWS may have begun. Next: "
                f"poolkit status {change_set.target}"
            ) from None


def print_plan(console: Console, change_set: ChangeSet) -> None:
    """Print the table of changes, the dangerous ones first, and the sum."""
    verb = "create" if change_set.is_new else "update"
    console.print(f"\nPlan: {verb} {change_set.stack}", style="bold")
    if not change_set.changes:
        console.print("no resource changes; parameters, outputs or tags do")
        return
    table = make_table("action", "resource", "type", "because of")
    for change in sorted(change_set.changes, key=lambda c: (_ORDER.index(c.kind), c.logical_id)):
        style = _STYLES.get(change.kind, "")
        name = change.kind.upper() if "replace" in change.kind else change.kind
        table.add_row(name, change.logical_id, change.type, change.because, style=style)
    print_table(console, table)
    kinds = [change.kind for change in change_set.changes]
    sums = [f"{kinds.count(kind)} to {kind}" for kind in _ORDER if kind in kinds]
    console.print(", ".join(sums))
    for change in change_set.losses:
        console.print(
            f"{change.logical_id} ({change.type}) holds data that would be lost: "
            f"the plan says {change.kind}",
            style="bold red",
        )
    for change in change_set.new_names:
        console.print(
            f"{change.logical_id} ({change.type}) would get another public name or address: "
            f"the plan says {change.kind}",
            style="bold red",
        )
