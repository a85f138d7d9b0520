"""The metrics that alarms and dashboards may watch, as AWS documents them.

Sources:
    AWS/Lambda: AWS Lambda Developer Guide, "Types of metrics for Lambda functions" and "Monitoring
        concurrency". Resource is `<function>:<alias>`; ExecutedVersion is given with it only.
        Lambda sends a figure for each minute with an invoke, and none for others.
    AWS/Lambda/Web: AWS Lambda Developer Guide, "Using CloudWatch metrics with Lambda Web Functions".
        Status classes have no figure of 0.
    AWS/ApiGateway: API Gateway Developer Guide, "Monitor CloudWatch metrics for HTTP APIs". The
        names of REST APIs' metrics are others (5XXError by ApiName).
    AWS/ApplicationELB: User Guide for Application Load Balancers, "CloudWatch metrics for your
        Application Load Balancer": counts by status have no figure of 0; the host counts have one
        as long as a target is registered.
    AWS/NetworkELB: User Guide for Network Load Balancers, "CloudWatch metrics for your Network Load
        Balancer".
    AWS/ECS: Amazon ECS Developer Guide, "Amazon ECS CloudWatch metrics".
    ECS/ContainerInsights: Amazon CloudWatch User Guide, "Amazon ECS Container Insights metrics".
    AWS/SQS: Amazon SQS Developer Guide, "Available CloudWatch metrics for Amazon SQS". A queue that
        was inactive for six hours has no figures.
    AWS/RDS: Amazon RDS User Guide, "Amazon CloudWatch metrics for Amazon RDS" and "Monitoring RDS
        Proxy metrics with Amazon CloudWatch" (of each underlying host, so that Sum is the proxy's);
        Amazon Aurora User Guide, "Amazon CloudWatch metrics for Amazon Aurora".
    AWS/Events, AWS/SNS: Amazon EventBridge and Amazon SNS, "Monitoring ... using CloudWatch".
"""

from typing import NamedTuple

SPARSE = "a minute without such an event has no figure, and is a good one"
STEADY = "there is a figure as long as the thing exists; no figure says nothing"
HEARTBEAT = "there is a figure as long as the thing works; no figure is the fault itself"
IDLE = "an idle queue or pool has no figures, and is a good one"

TREATMENTS = {
    SPARSE: {"notBreaching"},
    STEADY: {"missing", "ignore", "notBreaching"},
    HEARTBEAT: {"breaching"},
    IDLE: {"notBreaching", "ignore"},
}
"""What TreatMissingData may be by what a missing figure says."""


class Metric(NamedTuple):
    """The sets of dimensions that a metric has, its meaningful statistics, and what no figure says."""

    dimensions: tuple[frozenset[str], ...]
    statistics: frozenset[str]
    missing: str


def metric(missing, statistics, *dimensions):
    sets = tuple(frozenset(each.split()) for each in dimensions)
    return Metric(sets, frozenset(statistics.split()), missing)


_LAMBDA = ("FunctionName", "FunctionName Resource", "FunctionName Resource ExecutedVersion")
_HTTP_API = ("ApiId", "ApiId Stage")
_BALANCER = ("LoadBalancer", "LoadBalancer AvailabilityZone")
_TARGETS = ("LoadBalancer TargetGroup", "LoadBalancer TargetGroup AvailabilityZone")
_DATABASE = ("DBInstanceIdentifier", "DBClusterIdentifier", "DBClusterIdentifier Role")
_SERVICE = ("ClusterName ServiceName",)

METRICS = {
    ("AWS/Lambda", "Errors"): metric(SPARSE, "Sum", *_LAMBDA),
    ("AWS/Lambda", "Throttles"): metric(SPARSE, "Sum", *_LAMBDA[:2]),
    ("AWS/Lambda", "ConcurrentExecutions"): metric(SPARSE, "Maximum", *_LAMBDA),
    ("AWS/Lambda", "ProvisionedConcurrencySpilloverInvocations"): metric(
        SPARSE, "Sum", *_LAMBDA[:2]
    ),
    ("AWS/Lambda", "ProvisionedConcurrencyUtilization"): metric(SPARSE, "Maximum", *_LAMBDA[:2]),
    # As a query, which needs no other dimension than it names.
    ("AWS/Lambda/Web", "HTTPResponseStatusClass5XX"): metric(SPARSE, "Sum", "FunctionName"),
    ("AWS/ApiGateway", "5xx"): metric(SPARSE, "Sum", *_HTTP_API),
    ("AWS/ApiGateway", "Latency"): metric(SPARSE, "Average p", *_HTTP_API),
    ("AWS/ApplicationELB", "HTTPCode_Target_5XX_Count"): metric(
        SPARSE, "Sum", *_BALANCER, *_TARGETS
    ),
    ("AWS/ApplicationELB", "HTTPCode_ELB_5XX_Count"): metric(SPARSE, "Sum", *_BALANCER),
    ("AWS/ApplicationELB", "TargetResponseTime"): metric(
        SPARSE, "Average p", *_BALANCER, *_TARGETS
    ),
    ("AWS/ApplicationELB", "HealthyHostCount"): metric(
        HEARTBEAT, "Average Minimum Maximum", *_TARGETS
    ),
    # No target at all is HealthyHostCount's to report.
    ("AWS/ApplicationELB", "UnHealthyHostCount"): metric(
        STEADY, "Average Minimum Maximum", *_TARGETS
    ),
    ("AWS/NetworkELB", "HealthyHostCount"): metric(HEARTBEAT, "Minimum Maximum", *_TARGETS),
    ("AWS/NetworkELB", "UnHealthyHostCount"): metric(STEADY, "Minimum Maximum", *_TARGETS),
    ("AWS/ECS", "CPUUtilization"): metric(
        STEADY, "Average Minimum Maximum", "ClusterName", *_SERVICE
    ),
    ("AWS/ECS", "MemoryUtilization"): metric(
        STEADY, "Average Minimum Maximum", "ClusterName", *_SERVICE
    ),
    ("ECS/ContainerInsights", "RunningTaskCount"): metric(
        HEARTBEAT, "Average Minimum Maximum", "ClusterName", *_SERVICE
    ),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"): metric(IDLE, "Average Maximum", "QueueName"),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): metric(
        IDLE, "Average Minimum Maximum", "QueueName"
    ),
    ("AWS/SQS", "ApproximateNumberOfMessagesNotVisible"): metric(
        IDLE, "Average Minimum Maximum", "QueueName"
    ),
    ("AWS/SQS", "NumberOfMessagesSent"): metric(IDLE, "Sum", "QueueName"),
    ("AWS/SQS", "NumberOfMessagesDeleted"): metric(IDLE, "Sum", "QueueName"),
    ("AWS/RDS", "DatabaseConnections"): metric(
        STEADY, "Average Maximum Sum", *_DATABASE, "ProxyName"
    ),
    ("AWS/RDS", "CPUUtilization"): metric(STEADY, "Average Maximum", *_DATABASE),
    ("AWS/RDS", "CPUCreditBalance"): metric(STEADY, "Average Minimum", "DBInstanceIdentifier"),
    ("AWS/RDS", "FreeableMemory"): metric(STEADY, "Average Minimum", *_DATABASE),
    ("AWS/RDS", "FreeStorageSpace"): metric(STEADY, "Average Minimum", "DBInstanceIdentifier"),
    ("AWS/RDS", "FreeLocalStorage"): metric(STEADY, "Average Minimum", *_DATABASE),
    ("AWS/RDS", "MaximumUsedTransactionIDs"): metric(STEADY, "Average Maximum", *_DATABASE),
    ("AWS/RDS", "ACUUtilization"): metric(STEADY, "Average Maximum", *_DATABASE),
    ("AWS/RDS", "DatabaseConnectionsCurrentlySessionPinned"): metric(IDLE, "Sum", "ProxyName"),
}

OWN = {
    # poolkit/powertools/telemetry.py: written by an invoke, so a function at rest has no figure.
    "ConnectionsOpened": metric(SPARSE, "Sum", "target environment service"),
    "CheckoutWait": metric(SPARSE, "Average Maximum p", "target environment service"),
    "ColdStart": metric(SPARSE, "Sum", "target environment service"),
    "DeadLetters": metric(SPARSE, "Sum", "target environment service"),
    "ServerErrors": metric(SPARSE, "Sum", "target environment service version"),
}
"""The functions' own metrics; those of Prometheus are in test_monitoring.py."""

METRICS |= {("poolkit", name): each for name, each in OWN.items()}
