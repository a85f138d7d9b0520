"""A Docker Engine that records: the real Docker Compose creates and starts containers on it.

It answers what Compose asks (Engine API 1.50) as an engine would that has every image. A container
"runs" as soon as it is started; one that is not restarted has ended with 0. Health is what the
service or the image checks, and without either there is none, as on a real engine. What Compose
itself refuses happens before or between these requests.
"""

import http.server
import io
import json
import os
import re
import secrets
import shutil
import socketserver
import tarfile
import threading
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from processes import ROOT, run
from programs import needs

VERSION = "1.50"
_INFORMATION = {
    "OSType": "linux",
    "Architecture": "x86_64",
    "Swarm": {"LocalNodeState": "inactive"},
}


def find_compose():
    """Return Docker Compose, the program, or None: on PATH, or where scripts/compose-program put it."""
    return shutil.which("docker-compose") or shutil.which(ROOT / ".tools/compose/docker-compose")


needs_compose = needs(find_compose(), "run scripts/compose-program first")


@dataclass
class Created:
    """A container that Compose created: its request, and the files that were copied into it."""

    name: str
    request: dict
    files: dict = field(default_factory=dict)
    modes: dict = field(default_factory=dict)
    starts: int = 0

    @property
    def service(self):
        return self.request["Labels"]["com.docker.compose.service"]

    @property
    def host(self):
        return self.request["HostConfig"]

    @property
    def environment(self):
        return dict(each.split("=", 1) for each in self.request.get("Env") or [])


class Engine:
    """The engine behind a Unix socket, with what was created on it."""

    def __init__(self, folder, healthchecks=()):
        self.socket = Path(folder) / "engine.sock"
        self.healthchecks = set(healthchecks)
        """Images that have a HEALTHCHECK of their own."""
        self.containers, self.networks, self.volumes = {}, {}, {}
        self.order = []
        """The services in the order in which they were started."""

    def __enter__(self):
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                length = int(self.headers.get("content-length") or 0)
                if self.headers.get("transfer-encoding") == "chunked":
                    body = self._chunks()
                else:
                    body = self.rfile.read(length)
                path, _, query = self.path.partition("?")
                path = re.sub(r"^/v[\d.]+", "", path)
                status, found = engine.answer(
                    self.command, path, dict(urllib.parse.parse_qsl(query)), body
                )
                data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Api-Version", VERSION)
                self.send_header("Ostype", "linux")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "0" if status == 204 else str(len(data)))
                self.end_headers()
                if self.command != "HEAD" and status != 204:
                    self.wfile.write(data)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

            def _chunks(self):
                body = b""
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, *_):
                pass

            def address_string(self):
                return ""

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # Compose closes a connection when it has what it needs.

        self._server = Server(str(self.socket), Handler)
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def compose(self, *arguments, **variables):
        """Run Docker Compose against this engine, and return what it said."""
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.socket.parent)}
        environ |= {"DOCKER_HOST": f"unix://{self.socket}"} | variables
        words = [find_compose(), "--ansi", "never", *arguments]
        return run("env", "--ignore-environment", *(f"{k}={v}" for k, v in environ.items()), *words)

    def of_service(self, service):
        (found,) = [each for each in self.containers.values() if each.service == service]
        return found

    # -- the requests -----------------------------------------------------------------------

    def answer(self, method, path, query, body):
        """Return the status and the answer to one request."""
        with self._lock:
            for pattern, action in (
                (r"/_ping", lambda: (200, "OK")),
                (r"/version", lambda: (200, {"ApiVersion": VERSION, "Version": "28.2.2"})),
                (r"/info", lambda: (200, _INFORMATION)),
                (r"/images/(.+)/json", self._image),
                (r"/(networks|volumes)(?:/(.+))?", lambda *p: self._named(method, body, *p)),
                (r"/containers/json", lambda: (200, self._list(query))),
                (r"/containers/create", lambda: self._create(query, body)),
                (r"/containers/([^/]+)/(\w+)", lambda *p: self._container(*p, body)),
                (r"/containers/([^/]+)", self._remove),
            ):
                if found := re.fullmatch(pattern, path):
                    return action(*found.groups())
        return 404, {"message": f"no such page: {method} {path}"}

    def _image(self, name):
        return 200, {"Id": f"sha256:{name}", "RepoTags": [name], "Os": "linux", "Config": {}}

    def _named(self, method, body, kind, name):
        known = getattr(self, kind)
        if name == "create" and method == "POST":
            request = json.loads(body)
            known[request["Name"]] = request | {"Id": request["Name"], "Scope": "local"}
            return 201, known[request["Name"]]
        if name is None:
            return 200, {"Volumes": [*known.values()]} if kind == "volumes" else [*known.values()]
        if name.endswith("/connect"):
            return 200, {}
        return (200, known[name]) if name in known else (404, {"message": f"{name} not found"})

    def _create(self, query, body):
        key = secrets.token_hex(32)
        self.containers[key] = Created(query["name"], json.loads(body))
        return 201, {"Id": key, "Warnings": []}

    def _find(self, name):
        for key, each in self.containers.items():
            if name in (key, each.name):
                return key, each
        return None

    def _container(self, name, what, body):
        if (found := self._find(name)) is None:
            return 404, {"message": f"no such container: {name}"}
        key, container = found
        if what == "json":
            return 200, self._inspected(key, container)
        if what == "archive":
            with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                for member in archive:
                    content = archive.extractfile(member).read().decode()
                    container.files["/" + member.name.lstrip("/")] = content
                    container.modes["/" + member.name.lstrip("/")] = member.mode
        if what == "start":
            container.starts += 1
            self.order.append(container.service)
        return (200, {}) if what == "archive" else (204, "")

    def _remove(self, name):
        if found := self._find(name):
            del self.containers[found[0]]
        return 204, ""

    def _list(self, query):
        wanted = json.loads(query.get("filters", "{}")).get("label", {})
        summaries = []
        for key, each in self.containers.items():
            labels = each.request["Labels"]
            pairs = {f"{name}={value}" for name, value in labels.items()} | labels.keys()
            if set(wanted) <= pairs:
                state = self._inspected(key, each)["State"]["Status"]
                summaries.append(
                    {
                        "Id": key,
                        "Names": [f"/{each.name}"],
                        "Labels": labels,
                        "State": state,
                        "Image": each.request["Image"],
                        "Created": 1,
                        "ImageID": f"sha256:{each.request['Image']}",
                        "Mounts": _mounts(each.host),
                        "NetworkSettings": _networks(each),
                    }
                )
        return summaries

    def _inspected(self, key, container):
        ends = container.host.get("RestartPolicy", {}).get("Name", "no") in ("", "no")
        status = "created" if not container.starts else "exited" if ends else "running"
        own = container.request.get("Healthcheck") or {}
        checks = own.get("Test") not in (None, [], ["NONE"])
        checks = checks or (not own.get("Test") and container.request["Image"] in self.healthchecks)
        health = {"Health": {"Status": "healthy"}} if checks and status == "running" else {}
        return {
            "Id": key,
            "Name": f"/{container.name}",
            "Config": container.request,
            "HostConfig": container.host,
            "Image": f"sha256:{container.request['Image']}",
            "State": {"Status": status, "Running": status == "running", "ExitCode": 0, **health},
            "NetworkSettings": _networks(container),
            "Mounts": _mounts(container.host),
        }


def _networks(container):
    joined = container.request["NetworkingConfig"]["EndpointsConfig"]
    return {"Networks": {name: each | {"NetworkID": name} for name, each in joined.items()}}


def _mounts(host):
    """Return the volumes that a container has; Compose makes one again that lacks any."""
    found = [
        {
            "Type": each["Type"],
            "Name": each["Source"],
            "Source": each["Source"],
            "Destination": each["Target"],
        }
        for each in host.get("Mounts") or []
    ]
    for bind in host.get("Binds") or []:
        source, target, *_ = bind.split(":")
        kind = "bind" if source.startswith("/") else "volume"
        found.append({"Type": kind, "Name": source, "Source": source, "Destination": target})
    return found
