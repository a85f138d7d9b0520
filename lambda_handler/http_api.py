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
from lambda_handler.events import (
    body_of,
    correlation_id_of,
    for_resolver,
    query_of,
    source_of,
)
from lambda_handler.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from aws_lambda_powertools.event_handler import ApiGatewayResolver

    from articles.problems import Problem
    from lambda_handler.configuration import FunctionSettings
    from lambda_handler.events import Event, Source
    from lambda_handler.execution_environment import ExecutionEnvironment

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
    apis: dict[Source, HttpApi] = {}

    def handler(event: Event, context: Any) -> dict[str, Any]:
        source = source_of(event)
        with telemetry.invoke(context, correlation_id_of(event, source)):
            # Made when the first event of its kind comes: most functions only ever see one kind.
            if source not in apis:
                apis[source] = HttpApi(source, environment, telemetry, settings.max_body_bytes)
            return apis[source].answer(event, context)

    return handler


class HttpApi:
    """The API behind Powertools' resolver for one kind of HTTP event."""

    def __init__(
        self,
        source: Source,
        environment: ExecutionEnvironment,
        telemetry: Telemetry,
        max_body_bytes: int,
    ) -> None:
        self._source = source
        self._environment = environment
        self._logger = telemetry.logger
        self._max_body_bytes = max_body_bytes
        self._resolver = _RESOLVERS[source]()
        self._resolver.use([self._limit_body])
        for endpoint in api.API:
            rule = _PARAMETER.sub(r"<\1>", endpoint.path)
            self._resolver.route(rule, endpoint.method)(self._route(endpoint))
        self._resolver.not_found(self._on_unrouted)
        self._resolver.exception_handler(Exception)(self._on_error)

    def answer(self, event: Event, context: Any) -> dict[str, Any]:
        """Return the answer to one request, as the event's source expects it."""
        return self._resolver.resolve(for_resolver(event, self._source), context)

    def _limit_body(self, app: ApiGatewayResolver, next_middleware: Callable[..., Any]) -> Any:
        # For every path, also one that does not exist, as a web server's limit is.
        if len(body_of(app.current_event.raw_event)) > self._max_body_bytes:
            raise TooLarge(self._max_body_bytes)
        return next_middleware(app)

    def _route(self, endpoint: api.Endpoint) -> Callable[..., Answer[str]]:
        def answer(**path_parameters: str) -> Answer[str]:
            event = self._resolver.current_event.raw_event
            body = body_of(event) if endpoint.request_schema is not None else b""
            request = api.Request(path_parameters, query_of(event, self._source), body)
            operation = endpoint.handle(request)
            with self._environment.unit_of_work(autocommit=endpoint.safe) as connection:
                result = perform(connection, operation)
            return Answer(result.status, result.media_type, result.body.decode(), result.headers)

        return answer

    def _on_unrouted(self, _: Exception) -> Answer[str]:
        """Answer a request for which Powertools finds no route.

        It matches methods and paths together, so a 405 looks like a 404. And its path parameters
        have a limited alphabet, so /articles/" would be a 404, too, where other deployables
        explain what is wrong with the id.
        """
        event = self._resolver.current_event
        method, path = event.http_method.upper(), event.path
        allowed = []
        for endpoint in api.API:
            match = re.fullmatch(_PARAMETER.sub(r"(?P<\1>[^/]+)", endpoint.path), path)
            if match and endpoint.method == method:
                return self._route(endpoint)(**match.groupdict())
            if match:
                allowed.append(endpoint.method)
        return _answer(method_not_allowed(method, allowed) if allowed else no_such_path(path))

    def _on_error(self, error: Exception) -> Answer[str]:
        problem = problem_of(error)
        if problem.status == 500:
            self._logger.error("unexpected error", exc_info=error)
        elif problem.status > 500:
            self._logger.warning("database error", error=f"{type(error).__name__}: {error}")
        return _answer(problem)


def _answer(problem: Problem) -> Answer[str]:
    return Answer(problem.status, MEDIA_TYPE, problem.body().decode(), problem.headers)
