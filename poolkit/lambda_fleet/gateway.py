"""What clients see: an HTTP API in front of the function, Lambda's Invoke, and `/_fleet`."""

import asyncio
import base64
import json

from poolkit.lambda_fleet import payload as http_api
from poolkit.lambda_fleet.function import LambdaFunction
from poolkit.lambda_fleet.http_protocol import (
    HttpProtocol,
    Limits,
    Request,
    message,
    response,
)
from poolkit.lambda_fleet.invocation import (
    Invocation,
    Outcome,
    new_request_id,
    new_trace_id,
)
from poolkit.lambda_fleet.records import Status, as_csv
from poolkit.lambda_fleet.usage import Usage, usage

# Lambda's message: "Request must be smaller than 6291456 bytes for the InvokeFunction operation".
MAX_EVENT_BYTES = 6_291_456
# API Gateway Developer Guide, quotas of an HTTP API: request line and headers 10,240 bytes,
# payload 10 MB. The event's own limit is the smaller one.
CLIENT_LIMITS = Limits(head=10_240, body=10 * 1024 * 1024)

_INVOKE_PREFIX = b"/2015-03-31/functions/"
_JSON = b"content-type: application/json\r\n"
_TOO_LARGE = message(413, "Request Entity Too Large")
_SERVICE_UNAVAILABLE = message(503, "Service Unavailable")
_INTERNAL_SERVER_ERROR = message(500, "Internal Server Error")


class Gateway:
    """Turns client requests into invokes of one function and answers from their outcomes."""

    def __init__(self, function: LambdaFunction) -> None:
        self._function = function

    def on_request(self, connection: HttpProtocol, request: Request) -> None:
        """Answer one request, now or when its invoke is done."""
        if request.target == b"/_fleet/usage":
            self._look_at_usage(connection)
        elif request.target.startswith(b"/_fleet/"):
            connection.respond(self._look_in(request.target.partition(b"?")[0]))
        elif request.target.startswith(_INVOKE_PREFIX):
            self._invoke(connection, request)
        else:
            self._http_api(connection, request)

    # HTTP API

    def _http_api(self, connection: HttpProtocol, request: Request) -> None:
        if not request.target.startswith(b"/"):
            connection.respond(message(400, "Bad Request"))
            return
        request_id, trace_id = new_request_id(), new_trace_id()
        event = http_api.event(
            request, request_id=request_id, trace_id=trace_id, source_ip=connection.peer
        )
        if len(event) >= MAX_EVENT_BYTES:
            connection.respond(_TOO_LARGE)
            return

        def done(outcome: Outcome) -> None:
            connection.respond(self._http_answer(outcome))

        self._function.submit(Invocation(event, done, request_id=request_id, trace_id=trace_id))

    def _http_answer(self, outcome: Outcome) -> bytes:
        if outcome.status is Status.OK:
            return http_api.http_response(outcome.payload, request_id=outcome.request_id)
        if outcome.status is not Status.THROTTLED:
            return _INTERNAL_SERVER_ERROR
        if self._function.config.throttle_status == 503:
            return _SERVICE_UNAVAILABLE
        return _throttled(outcome)

    # Invoke

    def _invoke(self, connection: HttpProtocol, request: Request) -> None:
        refusal = self._refusal(request)
        if refusal is not None:
            connection.respond(refusal)
            return
        headers = {name.lower(): value for name, value in request.headers}
        kind = headers.get(b"x-amz-invocation-type", b"RequestResponse")
        if kind == b"DryRun":
            connection.respond(response(204, b"", b""))
            return
        request_id = new_request_id()
        event_only = kind == b"Event"

        def done(outcome: Outcome) -> None:
            if not event_only:
                connection.respond(_invoke_answer(outcome))

        if event_only:
            connection.respond(response(202, b"", _request_id_line(request_id)))
        self._function.submit(
            Invocation(
                request.body or b"{}",
                done,
                request_id=request_id,
                trace_id=new_trace_id(),
                client_context=_client_context(headers.get(b"x-amz-client-context", b"")),
            )
        )

    def _refusal(self, request: Request) -> bytes | None:
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

    # The fleet itself

    def _look_at_usage(self, connection: HttpProtocol) -> None:
        # In a thread: the kernel walks every page table for it, and invokes must not wait.
        def answer(looked: asyncio.Future[list[Usage]]) -> None:
            if looked.cancelled() or looked.exception() is not None:
                connection.respond(_INTERNAL_SERVER_ERROR)
            else:
                rows = [row._asdict() for row in looked.result()]
                connection.respond(response(200, json.dumps(rows).encode()))

        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, usage, self._function.pids()).add_done_callback(answer)

    def _look_in(self, path: bytes) -> bytes:
        match path:
            case b"/_fleet/healthz":
                return response(200, b'{"status":"ok"}')
            case b"/_fleet/stats":
                return response(200, json.dumps(self._function.stats()).encode())
            case b"/_fleet/invokes.csv":
                text = as_csv(self._function.counters.records)
                return response(200, text.encode(), b"content-type: text/csv\r\n")
        return message(404, "Not Found")


def _invoke_answer(outcome: Outcome) -> bytes:
    if outcome.status is Status.THROTTLED:
        return _throttled(outcome)
    headers = _JSON + _request_id_line(outcome.request_id)
    headers += b"x-amz-executed-version: $LATEST\r\n"
    if outcome.function_error:
        headers += b"x-amz-function-error: Unhandled\r\n"
    return response(200, outcome.payload, headers)


def _throttled(outcome: Outcome) -> bytes:
    headers = _JSON + _request_id_line(outcome.request_id)
    return response(
        429, outcome.payload, headers + b"x-amzn-errortype: TooManyRequestsException\r\n"
    )


def _request_id_line(request_id: str) -> bytes:
    return f"x-amzn-requestid: {request_id}\r\n".encode()


def _client_context(encoded: bytes) -> bytes:
    # Comes as base64, and the runtime reads it as JSON from a header.
    if not encoded:
        return b""
    try:
        return json.dumps(json.loads(base64.b64decode(encoded))).encode()
    except (ValueError, RecursionError):
        return b""


def _lambda_error(status: int, error_type: str, text: str) -> bytes:
    headers = _JSON + f"x-amzn-errortype: {error_type}\r\n".encode()
    return response(status, json.dumps({"Type": "User", "message": text}).encode(), headers)
