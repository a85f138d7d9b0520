"""HTTP to API Gateway's HTTP API payload format 2.0, and the function's answer back to HTTP.

Source: API Gateway Developer Guide, "Create AWS Lambda proxy integrations for HTTP APIs",
payload format version 2.0. Where the guide is silent, what AWS was seen to do: the path arrives
percent-decoded, the query string does not; a body is text only for `text/*` and JSON, XML and
JavaScript, and anything else, forms and bodies without a Content-Type included, is base64.
"""

import base64
import binascii
import json
import re
import time
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote

from poolkit.errors import MalformedResponse
from poolkit.lambda_fleet.http_protocol import Request, message, response

ACCOUNT_ID = "123456789012"
API_ID = "local"
TEXT_TYPES = frozenset({"application/json", "application/xml", "application/javascript"})

# What a function may not set itself: the connection is the gateway's.
_HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_INTERNAL_SERVER_ERROR = message(500, "Internal Server Error")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def is_text(content_type: str) -> bool:
    """Tell whether a body of this type is handed over as text rather than as base64."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type.startswith("text/") or media_type in TEXT_TYPES


def event(request: Request, *, request_id: str, trace_id: str, source_ip: str) -> bytes:
    """Return the event for a request as UTF-8 JSON."""
    path, _, query = request.target.decode("latin-1").partition("?")
    path = unquote(path)
    headers, cookies = _headers(request)
    headers["x-amzn-trace-id"] = trace_id
    headers.setdefault("x-forwarded-for", source_ip)
    headers.setdefault("x-forwarded-proto", "http")
    result: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
    }
    if cookies:
        result["cookies"] = cookies
    result["headers"] = headers
    if query:
        result["queryStringParameters"] = _joined(parse_qsl(query, keep_blank_values=True))
    result["requestContext"] = _context(request, headers, path, request_id, source_ip)
    _add_body(result, request.body, headers.get("content-type", ""))
    return _encode(result).encode()


def _headers(request: Request) -> tuple[dict[str, str], list[str]]:
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name == "cookie":
            cookies += [cookie.strip() for cookie in value.split(";") if cookie.strip()]
        else:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers, cookies


def _joined(pairs: list[tuple[str, str]]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value in pairs:
        result[name] = f"{result[name]},{value}" if name in result else value
    return result


def _context(
    request: Request, headers: dict[str, str], path: str, request_id: str, source_ip: str
) -> dict[str, Any]:
    now = time.time()
    domain = headers.get("host", "").partition(":")[0]
    return {
        "accountId": ACCOUNT_ID,
        "apiId": API_ID,
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
        "time": _clf_time(int(now)),
        "timeEpoch": int(now * 1000),
    }


@lru_cache(maxsize=4)
def _clf_time(second: int) -> str:
    # The month is English whatever the locale, so not %b.
    at = time.gmtime(second)
    month = "JanFebMarAprMayJunJulAugSepOctNovDec"[at.tm_mon * 3 - 3 : at.tm_mon * 3]
    return time.strftime(f"%d/{month}/%Y:%H:%M:%S +0000", at)


def _add_body(result: dict[str, Any], body: bytes, content_type: str) -> None:
    result["isBase64Encoded"] = False
    if not body:
        return
    if is_text(content_type):
        result["body"] = body.decode("utf-8", "replace")
    else:
        result["body"] = base64.b64encode(body).decode("ascii")
        result["isBase64Encoded"] = True


def http_response(payload: bytes, *, request_id: str) -> bytes:
    """Return the HTTP response for what the function returned.

    A JSON value without `statusCode` becomes a 200 with that value as its JSON body; an answer
    that cannot be used becomes API Gateway's 500.
    """
    try:
        return _http_response(json.loads(payload), payload, request_id)
    except (ValueError, RecursionError):
        return _INTERNAL_SERVER_ERROR


def _http_response(answer: Any, payload: bytes, request_id: str) -> bytes:
    requestid_line = f"apigw-requestid: {request_id}\r\n"
    if not isinstance(answer, dict) or "statusCode" not in answer:
        body = answer.encode("utf-8", "replace") if isinstance(answer, str) else payload
        return response(200, body, f"content-type: application/json\r\n{requestid_line}".encode())
    lines = _header_lines(answer.get("headers") or {})
    lines += [f"set-cookie: {_value(cookie)}\r\n" for cookie in _list(answer.get("cookies"))]
    lines.append(requestid_line)
    return response(
        _status(answer["statusCode"]), _body(answer), "".join(lines).encode("latin-1", "replace")
    )


def _status(value: object) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 200 <= value <= 599:
        raise MalformedResponse(f"statusCode must be 200 to 599, found {value!r}")
    return value


def _header_lines(headers: object) -> list[str]:
    if not isinstance(headers, dict):
        raise MalformedResponse(f"headers must be an object, found {headers!r}")
    lines = []
    typed = False
    for name, value in headers.items():
        lowered = name.lower()
        if not _HEADER_NAME.fullmatch(name):
            raise MalformedResponse(f"not a header name: {name!r}")
        if lowered not in _HOP_BY_HOP and value is not None:
            lines.append(f"{lowered}: {_value(value)}\r\n")
            typed = typed or lowered == "content-type"
    if not typed:
        lines.append("content-type: text/plain;charset=UTF-8\r\n")
    return lines


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise MalformedResponse(f"a header must be a string or a number, found {value!r}")
    text = str(value)
    if _NOT_IN_A_VALUE.search(text):
        raise MalformedResponse(f"control characters in a header: {text!r}")
    return text


def _list(value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise MalformedResponse(f"cookies must be a list, found {value!r}")
    return value


def _body(answer: dict[str, Any]) -> bytes:
    body = answer.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise MalformedResponse(f"body must be a string, found {type(body).__name__}")
    if not answer.get("isBase64Encoded"):
        # JSON's escapes can hold half a surrogate pair, which UTF-8 cannot.
        return body.encode("utf-8", "replace")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise MalformedResponse(f"body is not base64: {error}") from None
