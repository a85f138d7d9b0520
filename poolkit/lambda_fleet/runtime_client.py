"""The Runtime API client of `awslambdaric` in pure Python, where its native one does not fit.

`awslambdaric` imports a module of this name, an extension that is built for one version of Python
and for Linux. This one has the same functions, and is found only where that one is missing
(launch.py). Source: Lambda Developer Guide, "Using the Lambda runtime API".
"""

from __future__ import annotations

import http.client
import os

_PREFIX = "/2018-06-01/runtime/invocation"
_connection: http.client.HTTPConnection | None = None
_user_agent = ""


def initialize_client(user_agent: str) -> None:
    """Store the name under which this runtime asks for events."""
    global _user_agent  # noqa: PLW0603 - the native module has this state too
    _user_agent = user_agent


def next() -> tuple[bytes, dict[str, str]]:  # noqa: A001 - the native module's name
    """Wait for an event; return it with its headers."""
    answer, body = _request("GET", "/next")
    return body, {name.title(): text for name, text in answer.getheaders()}


def post_invocation_result(
    invoke_id: str,
    result: bytes,
    content_type: str = "application/json",
    invocation_id: str | None = None,
) -> None:
    """Answer an event."""
    _request("POST", f"/{invoke_id}/response", result, {"Content-Type": content_type})


def post_error(
    invoke_id: str,
    error: str,
    xray_fault: str = "",
    invocation_id: str | None = None,
) -> None:
    """Report that the handler raised."""
    headers = {"Content-Type": "application/json"}
    if xray_fault:
        headers["Lambda-Runtime-Function-XRay-Error-Cause"] = xray_fault.replace("\n", " ")
    _request("POST", f"/{invoke_id}/error", error.encode(), headers)


def _request(
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    """Send one request on the connection that stays open, and return the whole answer."""
    global _connection  # noqa: PLW0603
    if _connection is None:
        _connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    _connection.request(
        method, _PREFIX + path, body, {"User-Agent": _user_agent, **(headers or {})}
    )
    answer = _connection.getresponse()
    content = answer.read()
    if answer.status >= 300:
        raise RuntimeError(
            f"the Runtime API answered {method} {path} with {answer.status}: {content[:200]!r}"
        )
    return answer, content
