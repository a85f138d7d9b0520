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
import re
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import parse_qs, quote, unquote, unquote_plus

from poolkit.errors import UnknownEvent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = (
    "Source",
    "body_of",
    "correlation_id_of",
    "header_of",
    "query_of",
    "source_of",
    "sqs_records",
)

Source: TypeAlias = Literal["http_api", "rest_api", "function_url", "load_balancer"]
Event: TypeAlias = "dict[str, Any]"

# What a path parameter of Powertools' resolvers matches (event_handler/api_gateway.py, _SAFE_URI
# and _UNSAFE_URI), and the slash between segments. The percent sign is not in it: it is our escape.
_NOT_ROUTABLE = re.compile(r"[^\w/\-._~()'!*:@,;=+&$<> \[\]{}|^]")


def source_of(event: object) -> Source:
    """Return the service that sent an HTTP event; its shape shows it.

    Raises:
        UnknownEvent: it is not an HTTP request, such as one for an authorizer.
    """
    context = event.get("requestContext") if isinstance(event, dict) else None
    # An authorizer's event of type REQUEST looks like the request itself.
    if isinstance(event, dict) and isinstance(context, dict) and event.get("type") != "REQUEST":
        if event.get("version") == "2.0" and isinstance(context.get("http"), dict):
            if isinstance(event.get("rawPath"), str):
                # Both have payload format 2.0.
                is_url = ".lambda-url." in (context.get("domainName") or "")
                return "function_url" if is_url else "http_api"
        elif isinstance(event.get("path"), str) and isinstance(event.get("httpMethod"), str):
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
    if not isinstance(records, list) or not records or not all(map(_is_message, records)):
        raise UnknownEvent("a batch of SQS messages", event)
    return records


def _is_message(record: object) -> bool:
    return (
        isinstance(record, dict)
        and record.get("eventSource") == "aws:sqs"
        and isinstance(record.get("messageId"), str)
        and isinstance(record.get("body"), str)
    )


def for_resolver(event: Event, source: Source) -> Event:
    """Return the event with a path that Powertools' resolvers read as it was meant.

    The path is percent-decoded, which an HTTP API alone does by itself, and begins where the
    application's own paths begin: without the base path of a custom domain's mapping and, in
    format 1.0 of an HTTP API, without the stage. Characters outside the alphabet of Powertools'
    path parameters are escaped, and `Resolver` decodes them in the parameters.

    An event of format 2.0 has a stage, from whose length Powertools computes where the path
    begins. Hand-made events may have none, and `sam local` leaves it out of the path.
    """
    if source in ("rest_api", "load_balancer"):
        path = event["path"] if source == "load_balancer" else _path_of_rest_api(event)
        return {**event, "path": _routable(unquote(path))}
    path = unquote(event["rawPath"]) if source == "function_url" else event["rawPath"]
    stage = event["requestContext"].get("stage") or "$default"
    is_missing = stage != "$default" and path != f"/{stage}" and not path.startswith(f"/{stage}/")
    context = {**event["requestContext"], "stage": stage}
    prefix = f"/{stage}" if is_missing else ""
    return {**event, "rawPath": prefix + _routable(path), "requestContext": context}


def _routable(path: str) -> str:
    return _NOT_ROUTABLE.sub(lambda match: quote(match[0], errors="surrogatepass"), path)


def _path_of_rest_api(event: Event) -> str:
    """Return the path after the base path of a mapping, or after the stage in format 1.0."""
    path: str = event["path"]
    if event.get("version") == "1.0":
        # An HTTP API's stage is part of its path; a REST API's never is.
        stage = f"/{event['requestContext'].get('stage')}"
        return path.removeprefix(stage) if path.startswith(f"{stage}/") else path
    # The resource and its parameters know no mapping: /v1/orders/7 is /orders/{id} with id 7.
    parameters = event.get("pathParameters") or {}
    own = re.sub(
        r"\{(\w+)\+?\}", lambda name: str(parameters.get(name[1])), event.get("resource") or ""
    )
    # The parameters may be decoded already.
    if not own.startswith("/") or not unquote(path).endswith((own, unquote(own))):
        return path
    return "/" + "/".join(path.split("/")[-own.count("/") :])


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


def header_of(event: Event, name: str) -> str | None:
    """Return a header's value, several lines of it joined by commas, or None.

    Args:
        event: the event.
        name: the header's name in lower case.
    """
    # A REST API sends both, and the second has the last line only.
    several = event.get("multiValueHeaders")
    if several:
        lines = [line for key, lines in several.items() if key.lower() == name for line in lines]
        return ",".join(lines) if lines else None
    for key, value in (event.get("headers") or {}).items():
        if key.lower() == name:
            return str(value)
    return None


def body_of(event: Event) -> bytes:
    """Return the body's bytes, empty if there is no body.

    Raises:
        ValueError: it is not a string, or not the base64 that it should be; no service sends such
            an event.
    """
    body = event.get("body") or ""
    if not isinstance(body, str):
        raise ValueError(f"the event's body must be a string, not {type(body).__name__}")
    if not event.get("isBase64Encoded"):
        # A lone surrogate, which only a made-up event has, must reach the check for UTF-8.
        return body.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise ValueError(f"the event's body is not base64: {error}") from None


def correlation_id_of(event: object) -> str | None:
    """Return the id under which the sender logs an HTTP request: its own, or the trace's."""
    try:
        source = source_of(event)
    except UnknownEvent:
        return None
    assert isinstance(event, dict)  # noqa: S101  (source_of has looked)
    found: str | None
    if source != "load_balancer":
        found = event["requestContext"].get("requestId")
        return found
    several = (event.get("multiValueHeaders") or {}).get("x-amzn-trace-id") or (None,)
    found = (event.get("headers") or {}).get("x-amzn-trace-id", several[0])
    return found
