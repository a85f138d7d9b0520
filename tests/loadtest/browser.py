"""Headless Chromium, driven through its DevTools protocol: what is needed here, no more."""

import base64
import contextlib
import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket
from processes import RunningProcess, started

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_FLAGS = (
    # Its sandbox needs what a container does not give; it sees pages of this test alone.
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--remote-debugging-port=0"),
)


class Page:
    """One tab; `requested` has every address that the open page asked for."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, suppress_origin=True, timeout=90)
        self._number = 0
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            found = json.loads(self._socket.recv())
            if found.get("method") == "Network.requestWillBeSent":
                self.requested.append(found["params"]["request"]["url"])
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def open(self, address: str) -> None:
        """Go to an address."""
        self.requested.clear()
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def dark(self, *, dark: bool) -> None:
        """Prefer dark pages, or light ones."""
        value = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression; None where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return None if "exceptionDetails" in found else found["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 90.0) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.1)
        return found

    def picture(self, file: Path) -> None:
        """Write what is seen as a PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """Start Chromium with one empty tab; it is ended at the end."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = (*_FLAGS, "--window-size=1280,1000", f"--user-data-dir={folder}")
        with started(PROGRAM, *flags, "about:blank") as process:
            address = _address_of_tab(Path(folder) / "DevToolsActivePort", process)
            with contextlib.closing(Page(address)) as page:
                yield page


def _address_of_tab(file: Path, process: RunningProcess) -> str:
    # Two lines, the port and a path: with the second, the first is whole.
    process.wait_until(
        lambda: file.exists() and len(file.read_text().splitlines()) == 2, "a DevTools port"
    )
    port = int(file.read_text().split()[0])

    def tabs() -> list[dict[str, str]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
            return [tab for tab in json.load(answer) if tab["type"] == "page"]

    return str(process.wait_until(tabs, "a tab")[0]["webSocketDebuggerUrl"])
