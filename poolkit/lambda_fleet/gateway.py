"""The front doors of the fleet: an HTTP API, Lambda's Invoke, and `/_fleet` for its own state.

The HTTP API speaks payload format 2.0. Source: API Gateway Developer Guide, "Create AWS Lambda
proxy integrations for HTTP APIs". Where the guide is silent, the emulator does as AWS was observed
to do. The path arrives percent-decoded, the query string does not. A body is text only for
`text/*` and JSON, XML and JavaScript; anything else, forms and bodies without a Content-Type
included, is base64.
"""

import asyncio
import base64
import csv
import io
import json
import re
import time
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote

from poolkit.errors import MalformedResponse
from poolkit.lambda_fleet.function import LambdaFunction, Usage, usage
from poolkit.lambda_fleet.http_protocol import (
    HttpProtocol,
    Limits,
    Request,
    message,
    response,
)
from poolkit.lambda_fleet.invocation import (
    Invocation,
    InvokeRecord,
    Outcome,
    Status,
    new_request_id,
    new_trace_id,
)

# Lambda's message: "Request must be smaller than 6291456 bytes for the InvokeFunction operation".
MAX_EVENT_BYTES = 6_291_456
# API Gateway Developer Guide, quotas of an HTTP API: request line and headers 10,240 bytes,
# payload 10 MB. The event's own limit is the smaller one.
CLIENT_LIMITS = Limits(head=10_240, body=10 * 1024 * 1024)
TEXT_TYPES = frozenset({"application/json", "application/xml", "application/javascript"})

_INVOKE_PREFIX = b"/2015-03-31/functions/"
_JSON = b"content-type: application/json\r\n"
_INTERNAL_SERVER_ERROR = message(500, "Internal Server Error")

# A function may not set these itself: the connection is the gateway's.
_HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Gateway:
    """Turns client requests into invokes of one function, and their outcomes into responses."""

    def __init__(self, function: LambdaFunction) -> None:
        self._function = function

    def on_request(self, connection: HttpProtocol, request: Request) -> None:
        """Answer one request, now or when its invoke is done."""
        if request.target.startswith(_INVOKE_PREFIX):
            self.invoke(connection, request)
        elif request.target.startswith(b"/_fleet/"):
            self.inspect(connection, request)
        elif request.target.startswith(b"/"):
            self.http_api(connection, request)
        else:
            connection.respond(message(400, "Bad Request"))

    def http_api(self, connection: HttpProtocol, request: Request) -> None:
        """Invoke the function with the event of an HTTP API."""
        request_id, trace_id = new_request_id(), new_trace_id()
        event = http_api_event(
            request, request_id=request_id, trace_id=trace_id, source_ip=connection.peer
        )
        if len(event) >= MAX_EVENT_BYTES:
            connection.respond(message(413, "Request Entity Too Large"))
            return

        def done(outcome: Outcome) -> None:
            if outcome.status is Status.OK:
                connection.respond(http_api_response(outcome.payload, request_id=request_id))
            elif outcome.status is not Status.THROTTLED:
                connection.respond(_INTERNAL_SERVER_ERROR)
            elif self._function.config.throttle_status == 503:
                connection.respond(message(503, "Service Unavailable"))
            else:
                connection.respond(_throttled(outcome))

        self._function.submit(Invocation(event, done, request_id=request_id, trace_id=trace_id))

    def invoke(self, connection: HttpProtocol, request: Request) -> None:
        """Serve Lambda's Invoke API, so that AWS's own clients work against `fleet.url`."""
        if (refusal := self._refusal(request)) is not None:
            connection.respond(refusal)
            return
        headers = {name.lower(): value for name, value in request.headers}
        kind = headers.get(b"x-amz-invocation-type", b"RequestResponse")
        if kind == b"DryRun":
            connection.respond(response(204, b"", b""))
            return
        request_id = new_request_id()
        answer_headers = _JSON + _request_id_line(request_id)
        if kind == b"Event":
            connection.respond(response(202, b"", _request_id_line(request_id)))

        def done(outcome: Outcome) -> None:
            if kind == b"Event":
                return
            if outcome.status is Status.THROTTLED:
                connection.respond(_throttled(outcome))
                return
            failed = b"x-amz-function-error: Unhandled\r\n" if outcome.function_error else b""
            version = b"x-amz-executed-version: $LATEST\r\n"
            connection.respond(response(200, outcome.payload, answer_headers + version + failed))

        # The context comes as base64, and the runtime reads it as JSON from a header.
        client_context = b""
        if encoded := headers.get(b"x-amz-client-context"):
            try:
                client_context = json.dumps(json.loads(base64.b64decode(encoded))).encode()
            except (ValueError, RecursionError):
                client_context = b""
        self._function.submit(
            Invocation(
                request.body or b"{}",
                done,
                request_id=request_id,
                trace_id=new_trace_id(),
                client_context=client_context,
            )
        )

    def _refusal(self, request: Request) -> bytes | None:
        """Return the error that Lambda answers a wrong Invoke request with, if it is wrong."""
        path = request.target.partition(b"?")[0]
        name, _, rest = path[len(_INVOKE_PREFIX) :].decode("latin-1").partition("/")
        name = name.replace("%3A", ":")
        config = self._function.config
        if rest != "invocations" or request.method != b"POST":
            return _lambda_error(404, "UnknownOperationException", "POST .../invocations only")
        if name not in (config.function_name, config.arn, "function"):
            text = f"Function not found: {config.arn.rpartition(':')[0]}:{name}"
            return _lambda_error(404, "ResourceNotFoundException", text)
        if len(request.body) >= MAX_EVENT_BYTES:
            text = f"Request must be smaller than {MAX_EVENT_BYTES} bytes for the InvokeFunction operation"
            return _lambda_error(413, "RequestTooLargeException", text)
        try:
            json.loads(request.body or b"{}")
        except (ValueError, RecursionError) as error:
            text = f"Could not parse request body into json: {error}"
            return _lambda_error(400, "InvalidRequestContentException", text)
        return None

    def inspect(self, connection: HttpProtocol, request: Request) -> None:
        """Answer a request about the fleet itself: health, counters, records or usage."""
        match request.target.partition(b"?")[0]:
            case b"/_fleet/healthz":
                connection.respond(response(200, b'{"status":"ok"}'))
            case b"/_fleet/stats":
                connection.respond(response(200, json.dumps(self._function.stats()).encode()))
            case b"/_fleet/invokes.csv":
                text = io.StringIO()
                writer = csv.writer(text, lineterminator="\n")
                writer.writerows([InvokeRecord._fields, *self._function.counters.records])
                body = text.getvalue().encode()
                connection.respond(response(200, body, b"content-type: text/csv\r\n"))
            case b"/_fleet/usage":

                def answer(looked: asyncio.Future[list[Usage]]) -> None:
                    if looked.cancelled() or looked.exception() is not None:
                        connection.respond(_INTERNAL_SERVER_ERROR)
                    else:
                        rows = [row._asdict() for row in looked.result()]
                        connection.respond(response(200, json.dumps(rows).encode()))

                # In a thread: the kernel walks every page table for it, and invokes must not wait.
                loop = asyncio.get_running_loop()
                looking = loop.run_in_executor(None, usage, self._function.pids())
                looking.add_done_callback(answer)
            case _:
                connection.respond(message(404, "Not Found"))


def _throttled(outcome: Outcome) -> bytes:
    headers = _JSON + _request_id_line(outcome.request_id)
    return response(
        429, outcome.payload, headers + b"x-amzn-errortype: TooManyRequestsException\r\n"
    )


def _request_id_line(request_id: str) -> bytes:
    return f"x-amzn-requestid: {request_id}\r\n".encode()


def _lambda_error(status: int, error_type: str, text: str) -> bytes:
    headers = _JSON + f"x-amzn-errortype: {error_type}\r\n".encode()
    return response(status, json.dumps({"Type": "User", "message": text}).encode(), headers)


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
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_text = media_type.startswith("text/") or media_type in TEXT_TYPES
    event["isBase64Encoded"] = bool(request.body) and not is_text
    if event["isBase64Encoded"]:
        event["body"] = base64.b64encode(request.body).decode("ascii")
    elif request.body:
        event["body"] = request.body.decode("utf-8", "replace")
    return _encode(event).encode()


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


def _written_response(answer: dict[str, Any], request_id_line: str) -> bytes:
    """Return the response that the function describes in payload format 2.0.

    Raises:
        ValueError: API Gateway would refuse it; often MalformedResponse, which is one.
    """
    headers, cookies = answer.get("headers") or {}, answer.get("cookies") or []
    if not isinstance(headers, dict) or not isinstance(cookies, list):
        raise MalformedResponse(
            f"headers must be an object and cookies a list, found {headers!r} and {cookies!r}"
        )
    lines = []
    typed = False
    for name, value in headers.items():
        lowered = name.lower()
        if not _HEADER_NAME.fullmatch(name):
            raise MalformedResponse(f"not a header name: {name!r}")
        if lowered not in _HOP_BY_HOP and value is not None:
            lines.append(f"{lowered}: {_header_value(value)}\r\n")
            typed = typed or lowered == "content-type"
    if not typed:
        lines.append("content-type: text/plain;charset=UTF-8\r\n")
    lines += [f"set-cookie: {_header_value(cookie)}\r\n" for cookie in cookies]
    head = "".join([*lines, request_id_line]).encode("latin-1", "replace")
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
