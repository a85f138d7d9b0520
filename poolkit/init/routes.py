"""The paths of an application: as it describes itself, or as its source does."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from poolkit.init import describe_application
from poolkit.local.ports import LOOPBACK, free_port
from poolkit.placeholders import filled, values_for
from poolkit.project import with_interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from poolkit.init.applications import Application
    from poolkit.init.runtime import Interpreter
    from poolkit.init.sources import Module, Sources

IMPORT_TIMEOUT_S = 30.0
MAX_REASON = 300
LOGIN = "a login"
"""A need of a path, as describe_application.py names it too."""
TOKEN = "a token or password in its header"  # noqa: S105  (a need, for people)
_RARE_PATH = re.compile(
    r"logout|signout|delete|export|/metrics|/favicon|/(test)?[45]\d\d/?$|/(open)?api(/openapi)?\.json|/docs|/redoc"
)
_HEALTH = re.compile(r"/(health\w*|readyz?|livez?|ping|health-check)/?$")
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
_LOGIN_PAGE = re.compile(r"^(?!.*admin).*/(log-?_?in|sign-?_?in)/?$")
_SIGNUP_PAGE = re.compile(r"^(?!.*admin).*/(sign-?_?up|register|registration)/?$")
_TOKEN_DECORATOR = re.compile(r"(token|basic|http)_auth\.|jwt")
_LOGIN_DECORATOR = re.compile(r"login_required|jwt_required|auth_required")
_METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, kw_only=True)
class Route:
    """A path and a method, and what a request needs beside them."""

    method: str
    path: str
    needs: tuple[str, ...] = ()
    body: str = ""
    """The argument with an example of its body, as Python code; empty if none is known."""

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters in its path."""
        return re.findall(r"[{<](?:\w+:)?(\w+)(?::\w+)?[}>]", self.path)


@dataclass(frozen=True, kw_only=True)
class Signup:
    """The way in which a new user gets an account and logs in."""

    path: str
    """Where the account is made."""
    login: str
    """Where the user logs in."""
    argument: str
    """What carries the account's fields: `json`, `data`, or `form` for a page with an HTML form."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `json` or `data`, with examples."""


def plain_routes(routes: Sequence[Route], signup: Signup | None = None) -> list[Route]:
    """Return the paths that a GET without parameters reads, health checks last or never.

    Paths that want a login are among them only if the users of the load can sign up.
    """
    met = {LOGIN} if signup else set()
    forms = {signup.path, signup.login} if signup else set()
    plain = [
        r
        for r in routes
        if r.method == "GET"
        and not r.parameters
        and not set(r.needs) - met
        and r.path not in forms
        and not _RARE_PATH.search(r.path)
    ]
    real = [route for route in plain if not is_health(route.path)]
    return list({route.path: route for route in real or plain}.values())


def is_health(path: str) -> bool:
    """Return whether a path is that of a health check, which may do without the database."""
    return _HEALTH.search(path) is not None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of an application's paths."""

    routes: tuple[Route, ...] = ()
    kind: str = ""
    """`asgi` or `wsgi`; empty if it was not imported."""
    is_factory: bool = False
    login: str = ""
    """The path that takes a user's name and password, if it is known."""
    signup: Signup | None = None
    """How users of the load get an account, if that is known."""
    origin: str = ""
    """Where the paths come from, for people."""
    failure: str = ""
    """Why the application could not be asked."""

    def with_needs(self, other: Description) -> Description:
        """Return it with what another description knows of the same paths."""
        needs = {(route.method, route.path): route.needs for route in other.routes}
        routes = tuple(
            replace(route, needs=route.needs or needs.get((route.method, route.path), ()))
            for route in self.routes
        )
        return replace(self, routes=routes)

    def with_forms(self) -> Description:
        """Return it with the pages where a user registers and logs in, as their paths show."""
        pages = [r.path for r in self.routes if r.method == "GET" and not r.parameters]
        login = next((path for path in pages if _LOGIN_PAGE.search(path)), "")
        path = next((path for path in pages if _SIGNUP_PAGE.search(path)), "")
        signup = Signup(path=path, login=login, argument="form") if login and path else None
        return replace(self, login=self.login or login, signup=self.signup or signup)


def described(
    application: str,
    framework: str,
    *,
    interpreter: Interpreter,
    folder: Path,
    env: Mapping[str, str],
) -> Description:
    """Import an application in its own interpreter and return what it says of itself.

    Its database variables name a closed port, so that an import that connects fails here and
    reaches no database.

    Args:
        application: `module:attribute`.
        framework: as `Application.framework`; empty if it is not known.
        interpreter: the application's.
        folder: its working directory.
        env: the variables of the table `env`, with placeholders.
    """
    command = [str(interpreter.path), describe_application.__file__, application, framework]
    try:
        answer = subprocess.run(
            command,
            cwd=folder,
            env={**with_interpreter(os.environ, interpreter.path), **nowhere(env, folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Description(failure=f"it did not import within {IMPORT_TIMEOUT_S:g} s")
    except OSError as error:
        return Description(failure=f"{interpreter.path} does not run: {error.strerror}")
    mark = describe_application.MARK
    lines = [line for line in answer.stdout.splitlines() if line.startswith(mark)]
    if answer.returncode or not lines:
        reason = _exception(answer.stderr) or f"exit status {answer.returncode}"
        return Description(failure=reason)
    found = json.loads(lines[-1].removeprefix(mark))
    login = found["login"]
    return Description(
        routes=tuple(
            Route(
                method=r["method"],
                path=r["path"],
                needs=tuple(r["needs"]),
                body=", ".join(f"{name}={value!r}" for name, value in r["body"].items()),
            )
            for r in found["routes"]
        ),
        kind=found["kind"],
        is_factory=found["is_factory"],
        login=login,
        signup=Signup(login=login, **found["signup"]) if login and found["signup"] else None,
        origin="the application itself",
    )


def _exception(errors: str) -> str:
    """Return the exception at the end of a traceback, on one line of moderate length."""
    lines = errors.strip().splitlines()
    named = [i for i, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(: |$)", line)]
    text = " ".join(" ".join(lines[named[-1] if named else -1 :]).split())
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def nowhere(env: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return variables as `poolkit compare` sets them, but for a database at a closed port."""
    port = free_port()
    url = f"postgresql://nobody:none@{LOOPBACK}:{port}/none"
    broker_url = f"redis://{LOOPBACK}:{port}/0"
    values = values_for(url, python="python", port=str(port), broker_url=broker_url)
    return {
        "DATABASE_URL": url,
        "PYTHONPATH": str(folder),
        # A look leaves no files behind.
        "PYTHONDONTWRITEBYTECODE": "1",
        **filled(env, values),
    }


# -- from the source ------------------------------------------------------------------------


def read_from_source(sources: Sources, application: Application) -> Description:
    """Return the paths that decorators and URL patterns name, with the prefixes of their routers."""
    modules = [m for m in sources.modules if m.root == application.root]
    prefixes = _prefixes(modules)
    routes: list[Route] = []
    for module in modules:
        for node in module.nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                routes += _decorated(node, module, prefixes)
            elif isinstance(node, ast.Call) and module.full_name(node.func) == "django.urls.path":
                # The paths of an included module lack their prefix.
                first, view = [*node.args, None, None][:2]
                callee = view.func if isinstance(view, ast.Call) else view
                name = module.full_name(callee) if callee else ""
                text = getattr(first, "value", None)
                if isinstance(text, str) and not name.endswith(("include", "site.urls")):
                    path = _PARAMETER.sub(r"{\1}", text)
                    routes.append(Route(method="GET", path=f"/{path}"))
    return Description(
        routes=tuple(dict.fromkeys(routes)),
        is_factory=application.is_factory,
        origin="the source: prefixes of routers may be missing",
    )


def tasks_of(sources: Sources, root: Path) -> list[tuple[str, list[str]]]:
    """Return the names of Celery's tasks, and their parameters."""
    found = []
    for module in sources.modules:
        if module.root != root:
            continue
        for node in module.nodes:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for decorator in node.decorator_list:
                call = decorator if isinstance(decorator, ast.Call) else None
                name = module.full_name(call.func if call else decorator)
                if name.rpartition(".")[2] not in ("task", "shared_task") or "locust" in name:
                    continue
                keywords = call.keywords if call else []
                options = {k.arg: getattr(k.value, "value", None) for k in keywords}
                parameters = [a.arg for a in node.args.args]
                if options.get("bind"):
                    parameters = parameters[1:]
                found.append((str(options.get("name") or f"{module.name}.{node.name}"), parameters))
    return found


def _prefixes(modules: list[Module]) -> dict[str, str]:
    """Return the prefix of each router and blueprint, by `module.name`.

    `include_router(items.router, prefix="/api")` adds one to that of the router itself.
    """
    own: dict[str, str] = {}
    outer: dict[str, tuple[str, str]] = {}
    constants = _constants(modules)
    for module in modules:
        for node in module.nodes:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                prefix = _prefix(node.value, constants)
                kind = module.full_name(node.value.func).rpartition(".")[2]
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
                if kind in ("APIRouter", "Blueprint", "Router", "APIBlueprint"):
                    own |= {f"{module.name}.{name}": prefix for name in names}
            elif (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") in ("include_router", "register_blueprint")
                and node.args
            ):
                child = _qualified(module, node.args[0])
                parent = _qualified(module, getattr(node.func, "value", node.func))
                outer[child] = parent, _prefix(node, constants)

    def whole(name: str, depth: int = 0) -> str:
        if name not in outer or depth > 5:
            return own.get(name, "")
        parent, prefix = outer[name]
        return whole(parent, depth + 1) + prefix + own.get(name, "")

    return {name: whole(name) for name in {*own, *outer}}


def _constants(modules: list[Module]) -> dict[str, str]:
    """Return the strings that names such as `API_V1_STR` stand for, wherever they are set."""
    found = {}
    for module in modules:
        for node in module.nodes:
            value = getattr(node, "value", None)
            if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for target in targets:
                if isinstance(target, ast.Name) and value.value.startswith("/"):
                    found[target.id] = value.value
    return found


def _prefix(call: ast.Call, constants: Mapping[str, str]) -> str:
    for keyword in call.keywords:
        if keyword.arg not in ("prefix", "url_prefix"):
            continue
        value = keyword.value
        if isinstance(value, ast.Constant):
            return str(value.value or "")
        name = getattr(value, "attr", "") or getattr(value, "id", "")
        return constants.get(name, "")
    return ""


def _qualified(module: Module, node: ast.expr) -> str:
    full = module.full_name(node)
    return full if "." in full else f"{module.name}.{full}"


def _decorated(
    function: ast.FunctionDef | ast.AsyncFunctionDef, module: Module, prefixes: Mapping[str, str]
) -> Iterator[Route]:
    """Yield the paths of a function's decorators, such as `@router.get("/items")`."""
    callees = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    login = next((n for n in map(module.full_name, callees) if _LOGIN_DECORATOR.search(n)), "")
    # `token_auth.login_required` is that of Flask-HTTPAuth.
    need = TOKEN if _TOKEN_DECORATOR.search(login) else LOGIN
    for call in function.decorator_list:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        first = call.args[0] if call.args else None
        if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
            continue
        if call.func.attr in _METHODS:
            methods = [call.func.attr]
        elif call.func.attr in ("route", "api_route"):
            listed = next((k.value for k in call.keywords if k.arg == "methods"), None)
            elements = listed.elts if isinstance(listed, (ast.List, ast.Tuple)) else []
            methods = [str(getattr(e, "value", "GET")) for e in elements] or ["GET"]
        else:
            continue
        path = prefixes.get(_qualified(module, call.func.value), "") + first.value
        path = _PARAMETER.sub(r"{\1}", path) or "/"
        for method in methods:
            yield Route(method=method.upper(), path=path, needs=(need,) if login else ())
