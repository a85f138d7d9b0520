"""Prints an application's kind and paths as one line of JSON; run in its own interpreter.

    python describe_application.py MODULE:ATTRIBUTE FRAMEWORK

The working directory is the application's. Only the standard library and the application itself are
imported, and no request is sent. It runs on Python 3.8 and later.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "poolkit describes: "
"""Begins the line: applications print at import too."""
PASSWORD = "Load-test-1234"  # noqa: S105  (an example that most rules for passwords accept)


def main() -> None:
    """Import the application and print its description."""
    # This file's own folder must not be one where the application's modules are looked for.
    sys.path[0] = os.getcwd()  # noqa: PTH109
    name, framework = sys.argv[1], sys.argv[2]
    module_name, _, attribute = name.partition(":")
    module = importlib.import_module(module_name)
    application: Any = module
    for part in attribute.split("."):
        application = getattr(application, part)
    # A function that takes nothing makes the application; others are one, or need arguments.
    is_factory = inspect.isfunction(application) and all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in inspect.signature(application).parameters.values()
    )
    if framework == "powertools":
        application = next((v for v in vars(module).values() if hasattr(v, "_static_routes")), None)
    elif is_factory:
        application = application()
    if hasattr(application, "lifespan") and hasattr(application, "app"):
        application = application.app  # Mangum's
    found = {
        "kind": _kind(application),
        "is_factory": is_factory,
        "routes": list(_routes(application)),
        "login": _login(application),
        "signup": _signup(application),
    }
    sys.stdout.write(f"\n{MARK}{json.dumps(found)}\n")


def _kind(application: Any) -> str:
    """Return `asgi` or `wsgi`: an ASGI application is awaited, a WSGI one takes two arguments."""
    if hasattr(application, "wsgi_app"):
        return "wsgi"
    call = application
    if not inspect.isfunction(application):
        call = getattr(application, "__call__", None)  # noqa: B004
    if inspect.iscoroutinefunction(call):
        return "asgi"
    try:
        return "wsgi" if len(inspect.signature(call).parameters) == 2 else "asgi"
    except (TypeError, ValueError):
        return ""


def _routes(application: Any) -> Iterator[dict[str, Any]]:
    """Yield the paths that an application's framework lists."""
    if hasattr(application, "openapi"):
        yield from _of_openapi(application.openapi(), _restricted(application.routes))
    elif hasattr(application, "_static_routes"):  # a resolver of Powertools
        for route in [*application._static_routes, *application._dynamic_routes]:  # noqa: SLF001
            path = getattr(route, "path", "") or route.rule.pattern
            methods = route.method if isinstance(route.method, list) else [route.method]
            for method in methods:
                yield _route(method, path.replace("<", "{").replace(">", "}"))
    elif hasattr(application, "url_map"):  # Flask
        for rule in application.url_map.iter_rules():
            if rule.endpoint.rpartition(".")[2] != "static":
                path = re.sub(r"<(?:[^<>]*:)?(\w+)>", r"{\1}", rule.rule)
                for method in sorted(rule.methods - {"HEAD", "OPTIONS"}):
                    yield _route(method, path)
    elif type(application).__module__.startswith("django."):
        resolver: Any = importlib.import_module("django.urls").get_resolver()
        yield from _of_django(resolver.url_patterns, "/")
    else:
        yield from _of_starlette(getattr(application, "routes", ()), "")


def _login(application: Any) -> str:
    """Return the path that takes a user's name and password, as OpenAPI names it; or nothing."""
    if not hasattr(application, "openapi"):
        return ""
    schemes = application.openapi().get("components", {}).get("securitySchemes", {})
    for scheme in schemes.values():
        url = scheme.get("flows", {}).get("password", {}).get("tokenUrl", "")
        if url and "://" not in url:
            return "/" + str(url).lstrip("/")
    return ""


def _signup(application: Any) -> dict[str, Any]:
    """Return the path where a new user gets an account with a password, and an example of its body."""
    if not hasattr(application, "openapi"):
        return {}
    document = application.openapi()
    for path, operations in document.get("paths", {}).items():
        operation = operations.get("post", {})
        if not re.search(r"/(sign-?_?up|register|registration)/?$", path) or "{" in path:
            continue
        for argument, fields in _body(operation, document).items():
            if isinstance(fields, dict) and "password" in fields and _is_named(fields):
                return {"path": path, "argument": argument, "fields": fields}
    return {}


def _is_named(fields: dict[str, Any]) -> bool:
    return bool({"email", "username"} & fields.keys())


def _restricted(routes: Any) -> list[tuple[str, str, str]]:
    """Return path, function and dependency of FastAPI's routes that ask for more than a login.

    The path is without the prefixes of routers: newer versions keep included routers as they are.
    """
    found = []
    for route in routes:
        inner = getattr(getattr(route, "original_router", None), "routes", None)
        if inner is not None:
            found += _restricted(inner)
        pending = [getattr(route, "dependant", None)]
        while pending:
            dependant = pending.pop()
            pending += getattr(dependant, "dependencies", ())
            name = getattr(getattr(dependant, "call", None), "__name__", "")
            if (
                re.search(r"superuser|admin|staff|permission", name)
                and name != route.endpoint.__name__
            ):
                found.append((route.path, route.endpoint.__name__, name))
    return found


def _of_openapi(document: Any, restricted: Any = ()) -> Iterator[dict[str, Any]]:
    for path, operations in document.get("paths", {}).items():
        common = operations.get("parameters", [])
        for method, operation in operations.items():
            if method not in ("get", "post", "put", "patch", "delete"):
                continue
            needs = [
                f"the {each['in']} parameter {each['name']}"
                for each in [*common, *operation.get("parameters", [])]
                if each.get("required") and each.get("in") != "path"
            ]
            if operation.get("security", document.get("security")):
                needs.append("a login")
            needs += [
                f"what {dependency} asks for"
                for end, function, dependency in restricted
                if path.endswith(end) and function in operation.get("operationId", "")
            ]
            yield _route(method, path, needs, _body(operation, document))


def _body(operation: Any, document: Any) -> dict[str, Any]:
    """Return the argument of a request that carries its body, `json` or `data`, with an example."""
    content = operation.get("requestBody", {}).get("content", {})
    for kind, argument in (
        ("application/json", "json"),
        ("application/x-www-form-urlencoded", "data"),
    ):
        if kind in content:
            return {argument: _example(content[kind].get("schema", {}), document)}
    return {}


def _example(schema: Any, document: Any, depth: int = 0) -> Any:
    """Return a value of a schema: what it requires, as plain as possible."""
    if "$ref" in schema and depth < 6:
        found = document
        for key in schema["$ref"].lstrip("#/").split("/"):
            found = found[key]
        return _example(found, document, depth + 1)
    values = [schema[key] for key in ("example", "const", "default") if schema.get(key) is not None]
    values += [schema[key][0] for key in ("examples", "enum") if schema.get(key)]
    if values:
        return values[0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _example(schema[key][0], document, depth + 1)
    if schema.get("type") == "object" and depth < 6:
        properties = schema.get("properties", {})
        names = [name for name in properties if name in schema.get("required", ())]
        return {
            name: PASSWORD
            if name == "password"
            else _example(properties[name], document, depth + 1)
            for name in names
        }
    text = "load@example.com" if schema.get("format") == "email" else "text"
    plain = {"string": text, "integer": 1, "number": 1.0, "boolean": True, "array": []}
    return plain.get(schema.get("type"))


def _of_starlette(routes: Any, prefix: str) -> Iterator[dict[str, Any]]:
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if hasattr(route, "methods"):
            for method in sorted((route.methods or {"GET"}) - {"HEAD", "OPTIONS"}):
                yield _route(method, path)
        elif hasattr(route, "routes"):
            yield from _of_starlette(route.routes or (), path)


def _of_django(patterns: Any, prefix: str) -> Iterator[dict[str, Any]]:
    for pattern in patterns:
        text = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", str(pattern.pattern))
        text = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", text).lstrip("^").rstrip("$")
        path = prefix + text.replace("\\Z", "")
        if hasattr(pattern, "url_patterns"):
            # An administration's pages want a login, and are no load.
            is_admin = re.search(r"^[\w-]*admin/$", text) is not None
            if not is_admin and pattern.app_name not in ("admin", "djdt"):
                yield from _of_django(pattern.url_patterns, path)
        elif _matches_nothing(pattern.pattern):
            yield _route("GET", prefix)
        elif not re.search(r"[()\[\]*+?\\|]", path):
            yield _route("GET", path)


def _matches_nothing(pattern: Any) -> bool:
    """Return whether a regular expression matches the prefix alone, as that of a CMS's pages does."""
    return hasattr(pattern, "_regex") and re.search(str(pattern), "") is not None


def _route(method: str, path: str, needs: Any = (), body: Any = None) -> dict[str, Any]:
    return {"method": method.upper(), "path": path, "needs": list(needs), "body": body or {}}


if __name__ == "__main__":
    main()
