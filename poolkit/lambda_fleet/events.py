"""The events of the three HTTP doors of a function, and what each makes of its answer.

| door | event | source |
|---|---|---|
| `http` | HTTP API, payload format 2.0 | API Gateway Developer Guide, "Create AWS Lambda proxy integrations for HTTP APIs" |
| `rest` | REST API, payload format 1.0 | API Gateway Developer Guide, "Lambda proxy integrations in API Gateway" |
| `alb` | Application Load Balancer | ELB User Guide, "Use Lambda functions as targets of an Application Load Balancer" |

Where the guides are silent, the emulator does as AWS was observed to do. An HTTP API decodes the
path and leaves the query string; a REST API leaves the path and decodes the query; a load balancer
leaves both. A body is text for `text/*` and JSON, XML and JavaScript; anything else, forms and
bodies without a Content-Type included, is base64. A REST API passes everything on as text that is
UTF-8, and the rest as one whose `binaryMediaTypes` name its type.
"""

import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote

from poolkit.errors import MalformedResponse
from poolkit.lambda_fleet.http_protocol import Request, message, response

Event: TypeAlias = Literal["http", "rest", "alb"]

TEXT_TYPES = frozenset({"application/json", "application/xml", "application/javascript"})
_STAGE = "prod"
_TARGET_GROUP = (
    "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/local/0123456789abcdef"
)

# The parts of requestContext.identity that only a signed or a Cognito request has.
_UNKNOWN_IDENTITY = (
    *("accessKey", "accountId", "caller", "cognitoAuthenticationProvider"),
    *("cognitoAuthenticationType", "cognitoIdentityId", "cognitoIdentityPoolId"),
    *("principalOrgId", "user", "userArn"),
)

_JSON = b"content-type: application/json\r\n"
_INTERNAL_SERVER_ERROR = message(500, "Internal Server Error")
_MALFORMED_PROXY_RESPONSE = message(502, "Internal server error")
_BAD_GATEWAY = response(
    502,
    b"<html><head><title>502 Bad Gateway</title></head>"
    b"<body><center><h1>502 Bad Gateway</h1></center></body></html>",
    b"content-type: text/html\r\n",
)

# A function may not set these itself: the connection is the gateway's.
_HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, kw_only=True)
class Door:
    """One of the three: it turns requests into events, and payloads into responses."""

    event: Callable[..., bytes]
    response: Callable[..., bytes]
    failure: bytes
    """The answer for a function that raised, ended or timed out."""
    max_body: int
    """The largest body of a request in bytes."""


def http_api_event(request: Request, *, request_id: str, trace_id: str, source_ip: str) -> bytes:
    """Return the event of an HTTP API for a request, as UTF-8 JSON."""
    path, _, query = request.target.decode("latin-1").partition("?")
    path = unquote(path)
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name == "cookie":
            cookies += [cookie.strip() for cookie in value.split(";") if cookie.strip()]
        else:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    headers["x-amzn-trace-id"] = trace_id
    headers.setdefault("x-forwarded-for", source_ip)
    headers.setdefault("x-forwarded-proto", "http")
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
    }
    if cookies:
        event["cookies"] = cookies
    event["headers"] = headers
    if query:
        joined: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        event["queryStringParameters"] = joined
    now = time.time()
    domain = headers.get("host", "").partition(":")[0]
    event["requestContext"] = {
        "accountId": "123456789012",
        "apiId": "local",
        "domainName": domain,
        "domainPrefix": domain.partition(".")[0],
        "http": {
            "method": request.method.decode("latin-1"),
            "path": path,
            "protocol": f"HTTP/{request.http_version}",
            "sourceIp": source_ip,
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": request_id,
        "routeKey": "$default",
        "stage": "$default",
        "time": _log_time(int(now)),
        "timeEpoch": int(now * 1000),
    }
    event["isBase64Encoded"] = bool(request.body) and not _is_text(headers.get("content-type", ""))
    if event["isBase64Encoded"]:
        event["body"] = base64.b64encode(request.body).decode("ascii")
    elif request.body:
        event["body"] = request.body.decode("utf-8", "replace")
    return _encode(event).encode()


def rest_api_event(request: Request, *, request_id: str, trace_id: str, source_ip: str) -> bytes:
    """Return the event of a REST API with the resource `/{proxy+}`, as UTF-8 JSON."""
    path, _, query = request.target.decode("latin-1").partition("?")
    headers: dict[str, list[str]] = {}
    for raw_name, raw_value in request.headers:
        headers.setdefault(raw_name.decode("latin-1"), []).append(raw_value.decode("latin-1"))
    lowered = {name.lower(): values[-1] for name, values in headers.items()}
    headers["X-Amzn-Trace-Id"] = [trace_id]
    if "x-forwarded-for" not in lowered:
        headers["X-Forwarded-For"] = [source_ip]
    if "x-forwarded-proto" not in lowered:
        headers["X-Forwarded-Proto"] = ["http"]
    parameters: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameters.setdefault(name, []).append(value)
    method = request.method.decode("latin-1")
    proxy = path.lstrip("/")
    resource = "/{proxy+}" if proxy else "/"
    now = time.time()
    domain = lowered.get("host", "").partition(":")[0]
    try:
        body, is_base64 = request.body.decode("utf-8") or None, False
    except UnicodeDecodeError:
        body, is_base64 = base64.b64encode(request.body).decode("ascii"), True
    event = {
        "resource": resource,
        "path": path,
        "httpMethod": method,
        "headers": {name: values[-1] for name, values in headers.items()},
        "multiValueHeaders": headers,
        "queryStringParameters": {name: values[-1] for name, values in parameters.items()} or None,
        "multiValueQueryStringParameters": parameters or None,
        "pathParameters": {"proxy": proxy} if proxy else None,
        "stageVariables": None,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "local",
            "domainName": domain,
            "domainPrefix": domain.partition(".")[0],
            "extendedRequestId": request_id,
            "httpMethod": method,
            "identity": {
                **dict.fromkeys(_UNKNOWN_IDENTITY),
                "sourceIp": source_ip,
                "userAgent": lowered.get("user-agent"),
            },
            "path": f"/{_STAGE}{path}",
            "protocol": f"HTTP/{request.http_version}",
            "requestId": request_id,
            "requestTime": _log_time(int(now)),
            "requestTimeEpoch": int(now * 1000),
            "resourceId": "local",
            "resourcePath": resource,
            "stage": _STAGE,
        },
        "body": body,
        "isBase64Encoded": is_base64,
    }
    return _encode(event).encode()


def load_balancer_event(
    request: Request, *, request_id: str, trace_id: str, source_ip: str
) -> bytes:
    """Return the event of a load balancer without multi-value headers, as UTF-8 JSON."""
    path, _, query = request.target.decode("latin-1").partition("?")
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers
    }
    headers["x-amzn-trace-id"] = trace_id
    headers.setdefault("x-forwarded-for", source_ip)
    headers.setdefault("x-forwarded-port", "80")
    headers.setdefault("x-forwarded-proto", "http")
    is_text = _is_text(headers.get("content-type", "")) and "content-encoding" not in headers
    is_base64 = bool(request.body) and not is_text
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    event = {
        "requestContext": {"elb": {"targetGroupArn": _TARGET_GROUP}},
        "httpMethod": request.method.decode("latin-1"),
        "path": path,
        # As they were sent: the function has to decode them.
        "queryStringParameters": {name: value for name, _, value in pairs},
        "headers": headers,
        "body": base64.b64encode(request.body).decode("ascii")
        if is_base64
        else request.body.decode("utf-8", "replace"),
        "isBase64Encoded": is_base64,
    }
    return _encode(event).encode()


def _is_text(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type.startswith("text/") or media_type in TEXT_TYPES


@lru_cache(maxsize=4)
def _log_time(second: int) -> str:
    """Return a Unix time in the Common Log Format."""
    # The month is English whatever the locale, so not %b.
    at = time.gmtime(second)
    month = "JanFebMarAprMayJunJulAugSepOctNovDec"[at.tm_mon * 3 - 3 : at.tm_mon * 3]
    return time.strftime(f"%d/{month}/%Y:%H:%M:%S +0000", at)


def http_api_response(payload: bytes, *, request_id: str) -> bytes:
    """Return the HTTP response for the function's payload.

    A JSON value without `statusCode` becomes a 200 with that value as its JSON body. A payload
    that cannot be a response becomes API Gateway's 500.
    """
    request_id_line = f"apigw-requestid: {request_id}\r\n"
    try:
        answer = json.loads(payload)
        if not isinstance(answer, dict) or "statusCode" not in answer:
            body = answer.encode("utf-8", "replace") if isinstance(answer, str) else payload
            return response(200, body, _JSON + request_id_line.encode())
        return _written_response(answer, request_id_line)
    except (ValueError, RecursionError):
        return _INTERNAL_SERVER_ERROR


def rest_api_response(payload: bytes, *, request_id: str) -> bytes:
    """Return the HTTP response for the function's payload.

    A payload without `statusCode` becomes API Gateway's 502. Of a name in both `headers` and
    `multiValueHeaders` the values of the latter count.
    """
    try:
        answer = _object(json.loads(payload))
        lines = [*_header_lines(answer, multiple=True), f"x-amzn-requestid: {request_id}\r\n"]
        return _with_body(answer, lines, "application/json")
    except (ValueError, RecursionError):
        return _MALFORMED_PROXY_RESPONSE


def load_balancer_response(payload: bytes, *, request_id: str) -> bytes:
    """Return the HTTP response for the function's payload; 502 if the load balancer refuses it."""
    try:
        answer = _object(json.loads(payload))
        if len(payload) > LOAD_BALANCER_MAX_BODY:
            return _BAD_GATEWAY
        lines = _header_lines(answer, multiple=True)
        return _with_body(answer, lines, "application/octet-stream")
    except (ValueError, RecursionError):
        return _BAD_GATEWAY


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict) or "statusCode" not in answer:
        raise MalformedResponse(f"wanted an object with statusCode, found {answer!r}")
    return answer


def _written_response(answer: dict[str, Any], request_id_line: str) -> bytes:
    """Return the response that the function describes in payload format 2.0.

    Raises:
        ValueError: API Gateway would refuse it; often MalformedResponse, which is one.
    """
    cookies = answer.get("cookies") or []
    if not isinstance(cookies, list):
        raise MalformedResponse(f"cookies must be a list, found {cookies!r}")
    lines = _header_lines(answer)
    lines += [f"set-cookie: {_header_value(cookie)}\r\n" for cookie in cookies]
    return _with_body(answer, [*lines, request_id_line], "text/plain;charset=UTF-8")


def _header_lines(answer: dict[str, Any], *, multiple: bool = False) -> list[str]:
    """Return the lines of the answer's headers, with those of `multiValueHeaders` if it counts."""
    headers = answer.get("headers") or {}
    lists = (answer.get("multiValueHeaders") or {}) if multiple else {}
    if not isinstance(headers, dict) or not isinstance(lists, dict):
        raise MalformedResponse(f"headers must be an object, found {headers!r} and {lists!r}")
    repeated = {name.lower() for name in lists}
    values = {name: [value] for name, value in headers.items() if name.lower() not in repeated}
    lines = []
    for name, found in {**values, **lists}.items():
        if not _HEADER_NAME.fullmatch(name) or not isinstance(found, list):
            raise MalformedResponse(f"not a header: {name!r}: {found!r}")
        if name.lower() not in _HOP_BY_HOP:
            lines += [
                f"{name.lower()}: {_header_value(value)}\r\n"
                for value in found
                if value is not None
            ]
    return lines


def _with_body(answer: dict[str, Any], lines: list[str], default_type: str) -> bytes:
    """Return the response with the answer's status and body."""
    if not any(line.startswith("content-type:") for line in lines):
        lines = [f"content-type: {default_type}\r\n", *lines]
    head = "".join(lines).encode("latin-1", "replace")
    status, text = answer["statusCode"], answer.get("body")
    if isinstance(status, str) and status.isdecimal():
        status = int(status)
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise MalformedResponse(f"statusCode must be 200 to 599, found {status!r}")
    if text is not None and not isinstance(text, str):
        raise MalformedResponse(f"body must be a string, found {type(text).__name__}")
    # JSON's escapes can hold half a surrogate pair, which UTF-8 cannot.
    body = (text or "").encode("utf-8", "replace")
    if answer.get("isBase64Encoded"):
        body = base64.b64decode(body, validate=True)
    return response(status, body, head)


def _header_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise MalformedResponse(f"a header must be a string or a number, found {value!r}")
    text = str(value)
    if _NOT_IN_A_VALUE.search(text):
        raise MalformedResponse(f"control characters in a header: {text!r}")
    return text


LOAD_BALANCER_MAX_BODY = 1024 * 1024
# API Gateway's own limit is 10 MB; an event's, which gateway.py checks, is the smaller one.
_NO_LIMIT = 10 * 1024 * 1024
DOORS: dict[Event, Door] = {
    "http": Door(
        event=http_api_event,
        response=http_api_response,
        failure=_INTERNAL_SERVER_ERROR,
        max_body=_NO_LIMIT,
    ),
    "rest": Door(
        event=rest_api_event,
        response=rest_api_response,
        failure=_MALFORMED_PROXY_RESPONSE,
        max_body=_NO_LIMIT,
    ),
    "alb": Door(
        event=load_balancer_event,
        response=load_balancer_response,
        failure=_BAD_GATEWAY,
        max_body=LOAD_BALANCER_MAX_BODY,
    ),
}
