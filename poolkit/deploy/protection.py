"""What AWS itself refuses to delete: known before a removal begins, not in the middle of it.

CloudFormation deletes a stack's resources one after the other, and finds out about a protected
one when it comes to it. By then the service that the load balancer was for is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit.deploy.aws import error_code, in_plain_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit.deploy.aws import Aws

_GONE: Final = frozenset({"DBInstanceNotFound", "DBClusterNotFoundFault", "LoadBalancerNotFound"})


def protected_resources(aws: Aws, stack: str) -> Iterator[str]:
    """Give what of a stack has deletion protection, in words.

    Raises:
        DeployError: AWS cannot be asked.
    """
    with in_plain_words(f"reading the resources of {stack}"):
        pages = aws.cloudformation.get_paginator("list_stack_resources")
        found = [
            each
            for page in pages.paginate(StackName=stack)
            for each in page["StackResourceSummaries"]
        ]
    for each in found:
        identifier = each.get("PhysicalResourceId")
        # After a failed creation, or the first half of a removal, some are gone and still listed.
        if not identifier or each["ResourceStatus"] == "DELETE_COMPLETE":
            continue
        word, asks = _KINDS.get(each["ResourceType"], ("", None))
        if asks is not None and _is_protected(aws, asks, identifier):
            yield f"{word} {identifier}"


def _is_protected(aws: Aws, asks: Callable[[Aws, str], bool], identifier: str) -> bool:
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    with in_plain_words(f"asking whether {identifier} is protected"):
        try:
            return asks(aws, identifier)
        except ClientError as error:
            if error_code(error) in _GONE:
                return False
            raise


def _instance(aws: Aws, identifier: str) -> bool:
    found = aws.client("rds").describe_db_instances(DBInstanceIdentifier=identifier)
    return _says_so(found["DBInstances"])


def _cluster(aws: Aws, identifier: str) -> bool:
    found = aws.client("rds").describe_db_clusters(DBClusterIdentifier=identifier)
    return _says_so(found["DBClusters"])


def _says_so(databases: list[dict[str, Any]]) -> bool:
    return any(each.get("DeletionProtection") for each in databases)


def _load_balancer(aws: Aws, arn: str) -> bool:
    client = aws.client("elbv2")
    found = client.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    return {"Key": "deletion_protection.enabled", "Value": "true"} in found


_KINDS: Final[dict[str, tuple[str, Callable[[Aws, str], bool]]]] = {
    "AWS::RDS::DBInstance": ("the database", _instance),
    "AWS::RDS::DBCluster": ("the database", _cluster),
    "AWS::ElasticLoadBalancingV2::LoadBalancer": ("the load balancer", _load_balancer),
}
