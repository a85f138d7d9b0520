"""The endpoints of `articles.api` behind Powertools' resolvers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

from aws_lambda_powertools.event_handler import (
    ALBResolver,
    APIGatewayHttpResolver,
    APIGatewayRestResolver,
    LambdaFunctionUrlResolver,
)
from aws_lambda_powertools.event_handler import Response as Answer

from articles import api
from articles.errors import TooLarge
from articles.operations import perform
from articles.problems import MEDIA_TYPE, method_not_allowed, no_such_path, problem_of
from lambda_handler.http_events import (
    body_of,
    correlation_id_of,
    query_of,
    source_of,
    with_decoded_path,
)
from lambda_handler.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from aws_lambda_powertools.event_handler import ApiGatewayResolver

    from articles.problems import Problem
    from lambda_handler.configuration import FunctionSettings
    from lambda_handler.execution_environment import ExecutionEnvironment
    from lambda_handler.http_events import Event, Source

Handler: TypeAlias = "Callable[[Event, Any], dict[str, Any]]"

_RESOLVERS: dict[Source, type[ApiGatewayResolver]] = {
    "http_api": APIGatewayHttpResolver,
    "rest_api": APIGatewayRestResolver,
    "function_url": LambdaFunctionUrlResolver,
    "load_balancer": ALBResolver,
}
_PARAMETER = re.compile(r"{(\w+)}")


def make_handler(
    environment: ExecutionEnvironment, settings: FunctionSettings, stream: TextIO | None = None
) -> Handler:
    """Return the Lambda handler of the HTTP API.

    It raises UnknownEvent for an event that is not an HTTP request, and nothing else.

    Args:
        environment: whose engine it uses.
        settings: the function's own.
        stream: where log lines go; by default standard output.
    """
    telemetry = Telemetry(environment, settings, stream)
    http_api = HttpApi(environment, telemetry, settings.max_body_bytes)

    def handler(event: Event, context: Any) -> dict[str, Any]:
        source = source_of(event)
        with telemetry.invoke(context, correlation_id_of(event, source)):
            return http_api.answer(event, context, source)

    return handler


class HttpApi:
    """The API for every kind of HTTP event; a resolver is made when its kind first comes."""

    def __init__(
        self, environment: ExecutionEnvironment, telemetry: Telemetry, max_body_bytes: int
    ) -> None:
        self._environment = environment
        self._logger = telemetry.logger
        self._max_body_bytes = max_body_bytes
        self._resolvers: dict[Source, ApiGatewayResolver] = {}

    def answer(self, event: Event, context: Any, source: Source) -> dict[str, Any]:
        """Answer one request in the form that its sender wants."""
        if source not in self._resolvers:
            self._resolvers[source] = self._make_resolver(source)
        return self._resolvers[source].resolve(with_decoded_path(event, source), context)

    def _make_resolver(self, source: Source) -> ApiGatewayResolver:
        resolver = _RESOLVERS[source]()

        def limit_body(app: ApiGatewayResolver, next_middleware: Callable[..., Any]) -> Any:
            # For every path, also one that does not exist, as a web server's limit is.
            if len(body_of(app.current_event.raw_event)) > self._max_body_bytes:
                raise TooLarge(self._max_body_bytes)
            return next_middleware(app)

        resolver.use([limit_body])
        for endpoint in api.API:
            rule = _PARAMETER.sub(r"<\1>", endpoint.path)
            resolver.route(rule, endpoint.method)(self._route(endpoint, resolver, source))
        resolver.not_found(self._unrouted(resolver, source))
        resolver.exception_handler(Exception)(self._on_error)
        return resolver

    def _route(
        self, endpoint: api.Endpoint, resolver: ApiGatewayResolver, source: Source
    ) -> Callable[..., Answer[str]]:
        def route(**path_parameters: str) -> Answer[str]:
            return self._perform(
                endpoint, path_parameters, resolver.current_event.raw_event, source
            )

        return route

    def _perform(
        self, endpoint: api.Endpoint, path_parameters: dict[str, str], event: Event, source: Source
    ) -> Answer[str]:
        body = body_of(event) if endpoint.request_schema is not None else b""
        operation = endpoint.handle(api.Request(path_parameters, query_of(event, source), body))
        with self._environment.unit_of_work(autocommit=endpoint.safe) as connection:
            result = perform(connection, operation)
        return Answer(result.status, result.media_type, result.body.decode(), result.headers)

    def _unrouted(
        self, resolver: ApiGatewayResolver, source: Source
    ) -> Callable[[Exception], Answer[str]]:
        """Return what answers requests for which Powertools finds no route.

        It matches methods and paths together, so a 405 looks like a 404; and its path
        parameters have a limited alphabet, so that /articles/" would be a 404, too, where
        other deployables say what is wrong with the id.
        """

        def unrouted(_: Exception) -> Answer[str]:
            event = resolver.current_event
            method, path = event.http_method.upper(), event.path
            found = dict(_endpoints_at(path))
            for endpoint, parameters in found.values():
                if endpoint.method == method:
                    return self._perform(endpoint, parameters, event.raw_event, source)
            return _answer(method_not_allowed(method, found) if found else no_such_path(path))

        return unrouted

    def _on_error(self, error: Exception) -> Answer[str]:
        problem = problem_of(error)
        if problem.status == 500:
            self._logger.error("unexpected error", exc_info=error)
        elif problem.status > 500:
            self._logger.warning("database error", error=f"{type(error).__name__}: {error}")
        return _answer(problem)


def _answer(problem: Problem) -> Answer[str]:
    return Answer(problem.status, MEDIA_TYPE, problem.body().decode(), problem.headers)


def _endpoints_at(path: str) -> Iterator[tuple[str, tuple[api.Endpoint, dict[str, str]]]]:
    """Give each method at this path with its endpoint and the path's parameters."""
    for endpoint in api.API:
        match = re.fullmatch(_PARAMETER.sub(r"(?P<\1>[^/]+)", endpoint.path), path)
        if match:
            yield endpoint.method, (endpoint, match.groupdict())
