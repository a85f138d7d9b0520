"""The front doors of the fleet: an HTTP door, Lambda's Invoke, and `/_fleet` for its own state.

The HTTP door is an HTTP API, a REST API or a load balancer (events.py).
"""

import asyncio
import base64
import csv
import io
import json

from poolkit.lambda_fleet.events import DOORS
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

_INVOKE_PREFIX = b"/2015-03-31/functions/"
_JSON = b"content-type: application/json\r\n"


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
            self.http(connection, request)
        else:
            connection.respond(message(400, "Bad Request"))

    def http(self, connection: HttpProtocol, request: Request) -> None:
        """Invoke the function with the event of its HTTP door."""
        door = DOORS[self._function.config.event]
        request_id, trace_id = new_request_id(), new_trace_id()
        event = door.event(
            request, request_id=request_id, trace_id=trace_id, source_ip=connection.peer
        )
        if len(event) >= MAX_EVENT_BYTES or len(request.body) > door.max_body:
            connection.respond(message(413, "Request Entity Too Large"))
            return

        def done(outcome: Outcome) -> None:
            if outcome.status is Status.OK:
                connection.respond(door.response(outcome.payload, request_id=request_id))
            elif outcome.status is not Status.THROTTLED:
                connection.respond(door.failure)
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
                        connection.respond(message(500, "Internal Server Error"))
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
