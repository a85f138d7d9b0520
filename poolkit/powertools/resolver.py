"""A Powertools resolver for each HTTP event source, with problem documents for its errors."""

from __future__ import annotations

import base64
import contextlib
import functools
import inspect
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from aws_lambda_powertools.event_handler import (
    ALBResolver,
    APIGatewayHttpResolver,
    ApiGatewayResolver,
    LambdaFunctionUrlResolver,
    Response,
)
from aws_lambda_powertools.event_handler.api_gateway import Router
from aws_lambda_powertools.event_handler.exceptions import NotFoundError, ServiceError
from aws_lambda_powertools.event_handler.openapi.exceptions import (
    RequestValidationError,
    ValidationException,
)

from poolkit.config.holds import unit
from poolkit.errors import InvalidInput
from poolkit.powertools.events import body_of, for_resolver, header_of, query_of, source_of
from poolkit.problems import (
    MEDIA_TYPE,
    Problem,
    input_error_of,
    invalid_input,
    malformed_json,
    method_not_allowed,
    no_such_path,
    not_json,
    problem_of,
    status_problem,
    too_large,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aws_lambda_powertools import Logger
    from aws_lambda_powertools.shared.types import AnyCallableT

    from poolkit.powertools.events import Event, Source

__all__ = ("MAX_BODY_BYTES", "Resolver", "problem_response")

MAX_BODY_BYTES: Final = 1_048_576
"""The default limit of a request's body: 1 MiB, the most that a load balancer hands over."""

MAX_TARGET_BYTES: Final = 8_192
"""The limit of path and query; RFC 9110 wants 8,000 at least."""

_RESOLVERS: Final[Mapping[Source, type[ApiGatewayResolver]]] = {
    "http_api": APIGatewayHttpResolver,
    # Not APIGatewayRestResolver, with which /articles/ would be /articles for this source alone.
    "rest_api": ApiGatewayResolver,
    "function_url": LambdaFunctionUrlResolver,
    "load_balancer": ALBResolver,
}
_PARAMETER = re.compile(r"<(\w+)>")
_JSON = re.compile(r"application/(?:json|[^/;,\s]+\+json)[ \t]*(?:;|$)", re.IGNORECASE)  # RFC 6839


class Resolver(Router):
    """Powertools' resolver of whichever service sent the event, behind one set of routes.

        app = Resolver(logger=logger)

        @app.get("/articles/<article_id>")
        def get_article(article_id: str): ...

        def handler(event, context):
            return app.resolve(event, context)

    Routes, middlewares, `exception_handler`, `current_event` and `context` are Powertools' own. Beyond
    them, each source has the same paths: decoded, without stage and base path, a slash at the end
    being significant. An unknown path is a 404, a wrong method a 405 with `Allow`, a body over the
    limit a 413, a longer query than MAX_TARGET_BYTES a 414. HEAD is answered as GET without the
    body, unless a route is registered for it. An error that no `exception_handler` of yours takes is answered by
    `poolkit.problems.problem_of`, and logged from 500 upwards.

    Args:
        logger: for errors; without it they are not logged.
        max_body_bytes: a longer body is answered with 413, at any path.
        resolver_options: of Powertools' resolvers, such as `cors`, `serializer`, and
            `strip_prefixes` for a mapping of an HTTP API's custom domain.
    """

    def __init__(
        self,
        *,
        logger: Logger | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        **resolver_options: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Powertools leaves its types out
        self._logger = logger
        self._max_body_bytes = max_body_bytes
        self._options = resolver_options
        self._methods: dict[re.Pattern[str], set[str]] = {}
        # Made at the first event of its kind: most functions only ever see one kind.
        self._resolvers: dict[Source, ApiGatewayResolver] = {}
        self._source: Source = "http_api"
        self.use([self._limit, self._as_unit_of_work])
        self.exception_handler(Exception)(self._on_error)
        self.exception_handler(NotFoundError)(self._on_unrouted)

    def resolve(self, event: Event, context: Any) -> dict[str, Any]:
        """Return the answer to one request, in the form that the event's source expects.

        Raises:
            UnknownEvent: the event is not an HTTP request.
        """
        self._source = source = source_of(event)
        if source not in self._resolvers:
            self._resolvers[source] = _RESOLVERS[source](**self._options)
            self._resolvers[source].include_router(self)
        self.api_resolver = self._resolvers[source]
        resolve = self._resolvers[source].resolve
        event = for_resolver(event, source)
        if source in ("rest_api", "load_balancer"):
            method, get = event["httpMethod"], {**event, "httpMethod": "GET"}
        else:
            request = event["requestContext"]
            method, http = request["http"]["method"], {**request["http"], "method": "GET"}
            get = {**event, "requestContext": {**request, "http": http}}
        if method != "HEAD" or any("HEAD" in methods for methods in self._methods.values()):
            return resolve(event, context)
        return _without_body(resolve(get, context))

    def __call__(self, event: Event, context: Any) -> dict[str, Any]:
        """Do as `resolve`, so that the resolver itself can be the function's handler."""
        return self.resolve(event, context)

    @property
    def body(self) -> bytes:
        """The body of the current request as it was sent."""
        return body_of(self.current_event.raw_event)

    @property
    def json_body(self) -> bytes:
        """The body of the current request, whose content type must be JSON.

        Raises:
            InvalidInput: it has another type or none; the problem is a 415. A web page may send
                such a body to any host without asking first.
        """
        body = self.body
        if body and not _JSON.match(self.header("content-type") or ""):
            raise InvalidInput(not_json())
        return body

    def header(self, name: str) -> str | None:
        """Return a header of the current request by its name in lower case, or None."""
        return header_of(self.current_event.raw_event, name)

    @property
    def query(self) -> Mapping[str, Sequence[str]]:
        """Each query parameter's values, decoded, in the order in which they were sent."""
        return query_of(self.current_event.raw_event, self._source)

    def route(
        self, rule: str, method: str | list[str] | tuple[str], *args: Any, **options: Any
    ) -> Callable[[AnyCallableT], AnyCallableT]:
        """Register a route, as Powertools' `get`, `post` and the others do through this method."""
        register = super().route(rule, method, *args, **options)
        pattern = re.compile(_PARAMETER.sub("[^/]+", rule))
        methods = [method] if isinstance(method, str) else method
        self._methods.setdefault(pattern, set()).update(map(str.upper, methods))

        def decorate(function: AnyCallableT) -> AnyCallableT:
            register(_decoding(function) if _PARAMETER.search(rule) else function)
            self._resolvers.clear()  # made anew, with this route
            return function

        return decorate

    def use(self, middlewares: list[Callable[..., Any]]) -> None:
        """Add middlewares for all routes, as with Powertools' resolvers."""
        super().use(middlewares)
        self._resolvers.clear()

    def exception_handler(
        self, exc_class: type[Exception] | list[type[Exception]]
    ) -> Callable[[AnyCallableT], AnyCallableT]:
        """Register a function that answers these errors, as with Powertools' resolvers."""
        self._resolvers.clear()
        return super().exception_handler(exc_class)  # type: ignore[no-any-return]

    def _limit(self, app: ApiGatewayResolver, next_middleware: Callable[..., Any]) -> Any:
        # For every path, also one that does not exist, as a web server's limit is.
        try:
            length = len(self.body)
        except ValueError as error:
            return problem_response(malformed_json(str(error)))
        if length > self._max_body_bytes:
            return problem_response(too_large(self._max_body_bytes))
        event = self.current_event.raw_event
        query = event.get("rawQueryString")
        if query is None:
            # Load balancers and REST APIs hand the query over in parts; each & and = counts too.
            parts = self.query.items()
            size = sum(len(name) + len(each) + 2 for name, values in parts for each in values)
        else:
            size = len(query)
        if size > MAX_TARGET_BYTES:
            detail = f"the query may have {MAX_TARGET_BYTES} bytes at most; send less"
            return problem_response(status_problem(414, detail))
        return next_middleware(app)

    def _as_unit_of_work(self, app: ApiGatewayResolver, next_middleware: Callable[..., Any]) -> Any:
        route = app.context.get("_route")
        with unit(f"{self.current_event.http_method} {getattr(route, 'path', '')}"):
            return next_middleware(app)

    def _on_unrouted(self, error: NotFoundError) -> Response[str]:
        """Answer a request without a route, or a NotFoundError that a route has raised."""
        path = str(self.context.get("_path", self.current_event.path))
        found = [methods for rule, methods in self._methods.items() if rule.fullmatch(path)]
        allowed = set().union(*found)
        if self.current_event.http_method.upper() in allowed:
            return problem_response(status_problem(404, str(error.msg)))
        if "GET" in allowed:
            allowed.add("HEAD")
        return problem_response(method_not_allowed(allowed) if allowed else no_such_path())

    def _on_error(self, error: Exception) -> Response[str]:
        if isinstance(error, ServiceError):  # Powertools' own, such as BadRequestError
            return problem_response(status_problem(error.status_code, str(error.msg)))
        if isinstance(error, InvalidInput):
            return problem_response(error.problem)
        if isinstance(error, RequestValidationError):  # of Powertools' enable_validation
            return problem_response(invalid_input(map(input_error_of, error.errors())))
        if isinstance(error, ValidationException) and isinstance(error, NotImplementedError):
            # RequestUnsupportedContentType, a name that older releases do not have.
            return problem_response(status_problem(415, "this content type is not supported"))
        problem = problem_of(error)
        if self._logger is not None and problem.status == 500:
            self._logger.error("unexpected error", exc_info=error)
        elif self._logger is not None:
            self._logger.warning("database error", error=f"{type(error).__name__}: {error}")
        return problem_response(problem)


def _without_body(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a HEAD: GET's, its length included, without its body."""
    body = answer.get("body") or ""
    is_binary = answer.get("isBase64Encoded")
    length = str(len(base64.b64decode(body) if is_binary else body.encode()))
    several = answer.get("multiValueHeaders")  # of a REST API and of some load balancers
    name = "headers" if several is None else "multiValueHeaders"
    headers = {**answer[name], "Content-Length": length if several is None else [length]}
    return {**answer, "body": "", "isBase64Encoded": False, name: headers}


def _decoding(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a route with path parameters, for parameters as `for_resolver` escapes."""

    @functools.wraps(function)
    def with_decoded_parameters(*args: Any, **parameters: Any) -> Any:
        decoded = {
            name: unquote(value) if isinstance(value, str) and "%" in value else value
            for name, value in parameters.items()
        }
        return function(*args, **decoded)

    # Powertools evaluates annotations that are text in the module of the function it is given.
    with contextlib.suppress(NameError):
        signature = inspect.signature(function, eval_str=True)
        with_decoded_parameters.__signature__ = signature  # type: ignore[attr-defined]
    return with_decoded_parameters


def problem_response(problem: Problem) -> Response[str]:
    """Return a problem document as a response of Powertools, for an `exception_handler`.

    @app.exception_handler(NotFound)
    def not_found(error):
        return problem_response(status_problem(404, str(error)))
    """
    return Response(problem.status, MEDIA_TYPE, problem.body().decode(), problem.headers)
