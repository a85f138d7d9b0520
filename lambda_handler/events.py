"""The service that sent an event, and the request or the messages in it.

Powertools' event classes split values at commas and decode bodies as text. An API that
distinguishes `?limit=1&limit=2` from `?limit=1,2`, and bad UTF-8 from good, needs the original.

Sources: API Gateway Developer Guide, "Create AWS Lambda proxy integrations for HTTP APIs"
and "Input format of a Lambda function for proxy integration"; Elastic Load Balancing,
"Use Lambda functions as targets of an Application Load Balancer"; AWS Lambda Developer
Guide, "Invoking Lambda function URLs".
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import parse_qs, unquote, unquote_plus

from articles.errors import InputError, MalformedJson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Source: TypeAlias = Literal["http_api", "rest_api", "function_url", "load_balancer"]
Event: TypeAlias = "dict[str, Any]"


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


def source_of(event: object) -> Source:
    """Return the service that sent an HTTP event; its shape shows it.

    Raises:
        UnknownEvent: it is not an HTTP request.
    """
    context = event.get("requestContext") if isinstance(event, dict) else None
    if isinstance(event, dict) and isinstance(context, dict):
        if event.get("version") == "2.0" and "http" in context:
            # Both have payload format 2.0.
            is_url = ".lambda-url." in (context.get("domainName") or "")
            return "function_url" if is_url else "http_api"
        if "httpMethod" in event and "path" in event:
            return "load_balancer" if "elb" in context else "rest_api"
    raise UnknownEvent(
        "an event of an HTTP API (payload format 2.0 or 1.0), a REST API, "
        "a Lambda function URL or an Application Load Balancer",
        event,
    )


def sqs_records(event: object) -> list[dict[str, Any]]:
    """Return the messages of an SQS batch.

    Raises:
        UnknownEvent: it is not one.
    """
    records = event.get("Records") if isinstance(event, dict) else None
    if not records or any(record.get("eventSource") != "aws:sqs" for record in records):
        raise UnknownEvent("a batch of SQS messages", event)
    return list(records)


def for_resolver(event: Event, source: Source) -> Event:
    """Return the event as Powertools' resolvers read it.

    The path is percent-decoded, which only API Gateway does by itself. An event of format 2.0 has
    a stage, which its path begins with: without one, as in many hand-made events, the default's.
    """
    if source == "load_balancer":
        return {**event, "path": unquote(event["path"])}
    if source == "rest_api":
        return event
    path = unquote(event["rawPath"]) if source == "function_url" else event["rawPath"]
    context = {"stage": "$default", **event["requestContext"]}
    return {**event, "rawPath": path, "requestContext": context}


def query_of(event: Event, source: Source) -> Mapping[str, Sequence[str]]:
    """Return each parameter's values, decoded, in the order in which they were sent."""
    if source in ("http_api", "function_url"):
        # queryStringParameters joins the values by commas that a value may have, too.
        return parse_qs(event.get("rawQueryString") or "", keep_blank_values=True)
    values = event.get("multiValueQueryStringParameters")
    if values is None:
        # A load balancer without multi-value headers, which keeps the last value only.
        single = event.get("queryStringParameters") or {}
        values = {name: [value] for name, value in single.items()}
    if source == "rest_api":
        return dict(values)
    return {unquote_plus(k): [unquote_plus(v) for v in found] for k, found in values.items()}


def body_of(event: Event) -> bytes:
    """Return the body's bytes, empty if there is no body.

    Raises:
        MalformedJson: it is not a string, or not the base64 that it should be.
    """
    body = event.get("body") or ""
    if not isinstance(body, str):
        detail = f"the event's body must be a string, not {type(body).__name__}"
        raise MalformedJson((InputError(detail, pointer="#"),))
    if not event.get("isBase64Encoded"):
        # A lone surrogate, which only a made-up event has, must reach the check for UTF-8.
        return body.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(body)
    except ValueError as error:
        detail = f"the event's body is not base64: {error}"
        raise MalformedJson((InputError(detail, pointer="#"),)) from None


def correlation_id_of(event: Event, source: Source) -> str | None:
    """Return the id under which the sender logs the request: its own, or the trace's."""
    found: str | None
    if source != "load_balancer":
        found = event["requestContext"].get("requestId")
        return found
    several = (event.get("multiValueHeaders") or {}).get("x-amzn-trace-id") or (None,)
    found = (event.get("headers") or {}).get("x-amzn-trace-id", several[0])
    return found
