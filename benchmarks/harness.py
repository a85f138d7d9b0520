"""What the benchmarks share: options, arms measured in paired rounds, a PostgreSQL, the machine.

One round runs each arm once, in a random order. A machine slows down and speeds up over minutes.
That affects all arms of a round, so their ratio within the round stays right.

    options = read_options(__doc__, rounds=20)
    result = compare({"bare": timed(bare), "kit": timed(kit)}, rounds=options.rounds)
    print(result.table(baseline="bare"))
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import psutil
import psycopg2

from poolkit.local.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

ROOT = Path(__file__).resolve().parent.parent

Arm = Callable[[], Any]
"""Does its work once and returns a figure: seconds for one call, requests per second, bytes.

An arm may return several figures, as a tuple; `Comparison.part` selects one of them."""


_ANSWERING_SERVER = """
import asyncio, uvloop

ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok"

class Answering(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(ANSWER * data.count(b"\\r\\n\\r\\n"))

async def serve():
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

uvloop.run(serve())
"""


def read_options(
    description: str, *, positional: bool = False, **defaults: Any
) -> argparse.Namespace:
    """Return the command line's options.

    Args:
        description: the benchmark's docstring, which `--help` prints.
        positional: the options are given by their position, without names.
        defaults: by name; an option has its default's type. False makes a switch. A tuple lists
            the allowed values, and the default is None.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(f"--{name}", choices=default)
        elif positional:
            parser.add_argument(name, type=type(default), default=default, nargs="?")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def timed(work: Callable[[], object], *, calls: int = 1) -> Arm:
    """Return an arm that runs `work` once; its figure is the seconds of each of its `calls`."""

    def arm() -> float:
        began = perf_counter()
        work()
        return (perf_counter() - began) / calls

    return arm


@dataclass(frozen=True)
class Comparison:
    """The figures of each arm, one a round, in the order of the rounds."""

    figures: Mapping[str, Sequence[Any]]

    def part(self, index: int) -> Comparison:
        """Return the comparison of one figure, for arms that return several."""
        return Comparison(
            {arm: [each[index] for each in found] for arm, found in self.figures.items()}
        )

    def median(self, arm: str) -> float:
        """Return an arm's median figure."""
        return statistics.median(self.figures[arm])

    def ratios(self, arm: str, *, to: str) -> list[float]:
        """Return the ratio of two arms in each round, lowest first."""
        pairs = zip(self.figures[arm], self.figures[to], strict=True)
        return sorted(figure / base for figure, base in pairs)

    def ratio(self, arm: str, *, to: str) -> float:
        """Return the median of the rounds' own ratios, which drift does not change."""
        return statistics.median(self.ratios(arm, to=to))

    def table(self, *, baseline: str, unit: str = "µs", scale: float = 1e6) -> str:
        """Return a plain table: median, 10th and 90th percentile, ratio to the baseline.

        Args:
            baseline: the arm that the others are divided by.
            unit: what the figures are shown in.
            scale: what a figure is multiplied by to be in that unit.
        """
        width = max(map(len, self.figures))
        lines = [f"{'':{width}}  {'median ' + unit:>12}  {'p10':>10}  {'p90':>10}  {'ratio':>6}"]
        for arm, figures in self.figures.items():
            low, *_, high = statistics.quantiles(figures, n=10, method="inclusive")
            lines.append(
                f"{arm:{width}}  {self.median(arm) * scale:12.1f}  {low * scale:10.1f}"
                f"  {high * scale:10.1f}  {self.ratio(arm, to=baseline):6.3f}"
            )
        return "\n".join(lines)


def compare(arms: Mapping[str, Arm], *, rounds: int, warmup: int = 1) -> Comparison:
    """Run every arm once a round, each round in another order, and return the figures.

    Args:
        arms: by name; at least two.
        rounds: the number of figures of each arm.
        warmup: rounds whose figures are thrown away.
    """
    figures: dict[str, list[Any]] = {name: [] for name in arms}
    for number in range(warmup + rounds):
        for name in random.sample(list(arms), len(arms)):
            figure = arms[name]()
            if number >= warmup:
                figures[name].append(figure)
    return Comparison(figures)


@contextmanager
def postgresql(**options: Any) -> Iterator[EmbeddedPostgres]:
    """Start a PostgreSQL with these options of `EmbeddedPostgres`, and remove it afterwards."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        EmbeddedPostgres(Path(folder), cache_dir=ROOT / ".poolkit" / "cache", **options) as server,
    ):
        yield server


async def forward(reader: StreamReader, writer: StreamWriter) -> None:
    """Pass on what arrives, until one of the two ends: half of a TCP proxy."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


def backend_of(server: EmbeddedPostgres, name: str) -> psutil.Process:
    """Return the process of the one backend with that `application_name`."""
    with closing(psycopg2.connect(server.admin_url(driver=""))) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (name,))
        ((pid,),) = cursor.fetchall()
    return psutil.Process(pid)


def cpu_s(process: psutil.Process) -> float:
    """Return the seconds of processor time that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


def machine(*distributions: str) -> str:
    """Return one line: processor, cores, kernel, Python and the versions that matter."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():  # Linux alone has it
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    parts = [
        f"{processor} x {os.cpu_count()}",
        platform.platform(terse=True),
        f"Python {platform.python_version()}",
        ", ".join(f"{name} {version(name)}" for name in distributions),
    ]
    return "; ".join(filter(None, parts))


@contextmanager
def answering_server() -> Iterator[str]:
    """Run a web server that answers at once, in a process of its own; its URL is returned."""
    command = [sys.executable, "-c", _ANSWERING_SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()
