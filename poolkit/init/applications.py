"""The applications of a project: what a server, AWS Lambda or Celery would be told to run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from poolkit.init.sources import Module, Sources

Framework: TypeAlias = Literal[
    "fastapi", "starlette", "flask", "django", "other", "mangum", "powertools", "lambda", "celery"
]
_CLASSES: dict[str, Framework] = {
    "fastapi.FastAPI": "fastapi",
    "fastapi.applications.FastAPI": "fastapi",
    "starlette.applications.Starlette": "starlette",
    "litestar.Litestar": "starlette",
    "quart.Quart": "starlette",
    "flask.Flask": "flask",
    "apiflask.APIFlask": "flask",
    "flask_openapi3.OpenAPI": "flask",
    "connexion.FlaskApp": "flask",
    "django.core.wsgi.get_wsgi_application": "django",
    "django.core.asgi.get_asgi_application": "django",
    "mangum.Mangum": "mangum",
    "celery.Celery": "celery",
    "celery.app.Celery": "celery",
}
_RESOLVERS = {
    # The event that each reads: payload format 2.0, REST API, Application Load Balancer.
    "APIGatewayHttpResolver": "http",
    "LambdaFunctionUrlResolver": "http",
    "APIGatewayRestResolver": "rest",
    "ApiGatewayResolver": "rest",
    "ALBResolver": "alb",
}
_ASGI = ("fastapi", "starlette")
WEB: tuple[Framework, ...] = ("fastapi", "starlette", "flask", "django", "other")
FUNCTIONS: tuple[Framework, ...] = ("mangum", "powertools", "lambda")
_USUAL_FILES = (
    "main",
    "app",
    "application",
    "asgi",
    "wsgi",
    "server",
    "api",
    "handler",
    "__init__",
)
_USUAL_NAMES = ("app", "application", "handler", "lambda_handler", "celery", "celery_app", "api")


@dataclass(frozen=True, kw_only=True)
class Application:
    """One application object, or the function that makes one."""

    framework: Framework
    module: Module
    attribute: str
    is_factory: bool = False
    """Whether it is a function that makes one without arguments."""
    is_made_by_function: bool = False
    """Whether it is a function at all."""
    is_asgi: bool = False
    event: str = "http"
    """The shape of event that a function reads."""
    line: int = 0

    @property
    def name(self) -> str:
        """Its name for a server, such as `app.main:app`."""
        return f"{self.module.name}:{self.attribute}"

    @property
    def root(self) -> Path:
        """The folder from which its module is imported."""
        return self.module.root


def applications_in(sources: Sources) -> list[Application]:
    """Return every application of a project, the likeliest of each kind first."""
    factories = {
        f"{module.name}.{name}": found
        for module in sources.modules
        for name, found in _factories(module)
    }
    found: list[Application] = []
    for module in sources.modules:
        resolvers = {}
        for name, value in _assignments(module.tree.body):
            for call in _calls(value):
                full = module.full_name(call.func)
                local = f"{module.name}.{full}"
                factory = factories.get(sources.origin(full)) or factories.get(local)
                framework = _CLASSES.get(full) or (factory.framework if factory else None)
                if framework is not None:
                    application = Application(
                        framework=framework,
                        module=module,
                        attribute=name,
                        is_asgi=framework in _ASGI or full.endswith("get_asgi_application"),
                        line=value.lineno,
                    )
                    found.append(application)
                    break
                if (event := _RESOLVERS.get(full.rpartition(".")[2])) and "powertools" in full:
                    resolvers[name] = event
        found += _handlers(module, resolvers)
    made = {(a.framework, a.root) for a in found}
    found += [f for f in factories.values() if (f.framework, f.root) not in made]
    return sorted(found, key=lambda application: _rank(application, sources))


def _rank(application: Application, sources: Sources) -> tuple[object, ...]:
    """Return the order: the usual names of files and objects near the root come first."""
    stem = application.module.path.stem
    depth = len(application.module.path.relative_to(sources.root).parts)
    attribute = application.attribute
    return (
        [*WEB, *FUNCTIONS, "celery"].index(application.framework),
        application.is_factory,
        # Django has both; its deployments run WSGI, unless the project has ASGI alone.
        application.is_asgi and application.framework == "django",
        _USUAL_FILES.index(stem) if stem in _USUAL_FILES else len(_USUAL_FILES),
        _USUAL_NAMES.index(attribute) if attribute in _USUAL_NAMES else len(_USUAL_NAMES),
        depth,
        str(application.module.path),
    )


def _factories(module: Module) -> Iterator[tuple[str, Application]]:
    """Yield the functions that make an application and return it."""
    for node in module.tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        returns = any(isinstance(each, ast.Return) and each.value for each in ast.walk(node))
        required = len(node.args.args) - len(node.args.defaults)
        for value in _calls(node):
            framework = _CLASSES.get(module.full_name(value.func))
            # A handler that makes a WSGI application for itself is no factory of it.
            if framework in (*WEB, "celery") and framework != "django" and returns:
                yield (
                    node.name,
                    Application(
                        framework=framework,
                        module=module,
                        attribute=node.name,
                        is_factory=not required,
                        is_made_by_function=True,
                        is_asgi=framework in _ASGI,
                        line=node.lineno,
                    ),
                )
                break


def _handlers(module: Module, resolvers: dict[str, str]) -> Iterator[Application]:
    """Yield the functions with the signature of AWS Lambda."""
    for node in module.tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        names = [argument.arg for argument in node.args.args]
        if len(names) != 2 or not (names[0].lstrip("_") == "event" or "handler" in node.name):
            continue
        if "context" not in names[1]:
            continue
        event = next(
            (
                resolvers[call.func.value.id]
                for call in _calls(node)
                if isinstance(call.func, ast.Attribute)
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id in resolvers
            ),
            None,
        )
        yield Application(
            framework="powertools" if event else "lambda",
            module=module,
            attribute=node.name,
            event=event or "http",
            line=node.lineno,
        )


def _assignments(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Yield the module's own names and values, also those inside of `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value
        elif isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
            continue  # what a script does when it is run
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _assignments(node.body)
            for handler in getattr(node, "handlers", ()):
                yield from _assignments(handler.body)
            yield from _assignments(getattr(node, "orelse", ()))


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls in a node, the outermost first."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            yield each
