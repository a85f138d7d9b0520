"""The row of a request: for `poolkit compare`, and for the file of a plain run.

A plain run writes its rows in batches, in a real thread beside the event loop that sends the load.
"""

from __future__ import annotations

import csv
import logging
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gevent

from poolkit.errors import ConfigurationError, how_to_install
from poolkit.loadtest.event_loop import InThread, pause_thread
from poolkit.output_file import check_regular_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OPTION = "--requests-file"
FLUSH_EVERY_S = 0.5
"""A kill loses no more than this, if the file is a CSV."""
_PART = 100
"""Rows that the thread formats at a time; then it lets the event loop run."""
_ROWS_OF_A_GROUP = 50_000
"""Parquet's row groups: larger ones are read faster, smaller ones need less memory here."""

logger = logging.getLogger("poolkit.loadtest")


class RequestRow(NamedTuple):
    """A request of a comparison; None where a figure is not known."""

    due: float
    """When it was scheduled, Unix time in seconds; in a closed loop when it was sent."""
    started: float | None
    """When it was sent."""
    latency_ms: float
    """From `due` to the end."""
    service_ms: float | None
    """From `started` to the end."""
    method: str
    name: str
    status: int
    """The HTTP status; 0 without one."""
    error: str
    """Empty for a success: the status, the exception's type, or why there was no answer."""


FIELDS = RequestRow._fields
"""The columns of requests.csv in a run folder, which `poolkit compare` reads again."""


class RunRow(NamedTuple):
    """A request of a plain run: the columns of its file."""

    due: float
    started: float | None
    latency_ms: float
    service_ms: float | None
    method: str
    name: str
    status: int
    error: str
    user_class: str = ""
    """Empty where no user sent it."""
    tags: str = ""
    """Those of the task, sorted, with commas between them."""


RUN_FIELDS = RunRow._fields
"""`FIELDS` first, and then what only a plain run has."""


def request_row(
    ended: float,
    latency_ms: float,
    service_ms: float,
    *,
    method: str,
    name: str,
    response: object,
    exception: BaseException | None,
) -> RequestRow:
    """Return the row of a request that was answered or failed.

    Args:
        ended: Unix time in seconds.
        latency_ms: from its scheduled moment.
        service_ms: from its sending.
        method: of Locust's event.
        name: of the event.
        response: of the event; anything or None.
        exception: of the event; None for a success.
    """
    status = getattr(response, "status_code", 0) or 0
    status = status if isinstance(status, int) else 0
    error = "" if exception is None else str(status or type(exception).__name__)
    due, started = ended - latency_ms / 1000, ended - service_ms / 1000
    return RequestRow(due, started, latency_ms, service_ms, method, name, status, error)


def in_csv(row: Sequence[Any]) -> list[Any]:
    """Return a row as CSV has it: times to the microsecond, empty where a figure is not known."""
    times = ("" if value is None else f"{value:.6f}" for value in row[:4])
    return [*times, *row[4:]]


class _Writer(Protocol):
    """Writes rows to a file, in a thread."""

    def write(self, rows: Iterable[RunRow]) -> None: ...

    def close(self) -> None: ...


class _CsvWriter:
    """A line for each row; complete after each call."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(RUN_FIELDS)
        self._file.flush()

    def write(self, rows: Iterable[RunRow]) -> None:
        self._rows.writerows(map(in_csv, rows))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _ParquetWriter:
    """Row groups of `_ROWS_OF_A_GROUP`; readable once it is closed, which is what Parquet is like."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa  # noqa: PLC0415  (large, and not on every machine)
        from pyarrow import parquet  # noqa: PLC0415

        kinds = {float: pa.float64(), str: pa.string(), int: pa.int32()}
        self._schema = pa.schema(
            [
                *((name, kinds[float]) for name in RUN_FIELDS[:4]),
                *((name, kinds[int if name == "status" else str]) for name in RUN_FIELDS[4:]),
            ]
        )
        self._new_batch = partial(pa.RecordBatch.from_arrays, schema=self._schema)
        self._new_array, self._new_table = pa.array, pa.Table.from_batches
        self._file = parquet.ParquetWriter(path, self._schema)
        self._batches: list[Any] = []
        self._waiting = 0

    def write(self, rows: Iterable[RunRow]) -> None:
        columns = zip(zip(*rows, strict=True), self._schema, strict=True)
        batch = self._new_batch([self._new_array(column, field.type) for column, field in columns])
        self._batches.append(batch)
        self._waiting += batch.num_rows
        if self._waiting >= _ROWS_OF_A_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        if self._batches:
            self._file.write_table(self._new_table(self._batches, schema=self._schema))
        self._batches, self._waiting = [], 0

    def close(self) -> None:
        self._write_group()
        self._file.close()


_WRITERS: dict[str, type[_CsvWriter | _ParquetWriter]] = {
    ".csv": _CsvWriter,
    ".parquet": _ParquetWriter,
}


def check_format(path: str) -> None:
    """Check that a file of this name can be written.

    Raises:
        ConfigurationError: its suffix is neither .csv nor .parquet, pyarrow is not installed, or
            something other than a regular file has the name.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise ConfigurationError(
            f"{OPTION} is {path}; wanted a name that ends in .csv or .parquet, which is its format"
        )
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigurationError(
            f"{OPTION} {path} needs pyarrow, which is not installed: {how_to_install('parquet')}, "
            "pip install pyarrow, or name a .csv file"
        )
    check_regular_file(OPTION, Path(path))


def of_worker(path: str, index: int) -> str:
    """Return the name of a worker's own file: requests-0.csv for requests.csv."""
    name = Path(path)
    return str(name.with_name(f"{name.stem}-{index}{name.suffix}"))


class RequestFile:
    """The file of a plain run's requests; adding a row costs the event loop one append.

    A file that cannot be written, as on a full disk, is reported in one line and never stops a load
    test.

    Args:
        path: the file; its suffix decides the format.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rows: list[RunRow] = []
        self._writer: _Writer | None = _WRITERS[self.path.suffix.lower()](self.path)
        self._thread = InThread()
        self._written = 0
        self._flushing = gevent.spawn(self._flush_regularly)
        self.add = self._rows.append
        """Adds a row."""

    def _flush_regularly(self) -> None:
        while True:
            gevent.sleep(FLUSH_EVERY_S)
            self._flush()

    def _flush(self) -> None:
        # The list stays the same one, whose `append` is known outside.
        rows = self._rows[:]
        del self._rows[: len(rows)]
        writer = self._writer
        if writer is None or not rows:
            return

        def write() -> None:
            for begin in range(0, len(rows), _PART):
                part = rows[begin : begin + _PART]
                writer.write(part)
                self._written += len(part)
                pause_thread()

        try:
            self._thread.call(write)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._writer = None
        logger.error("%s %s is incomplete: %s", OPTION, self.path, error.strerror or error)

    def close(self) -> None:
        """Write the last rows, and say how many there are."""
        # Between two flushes only: one that is under way ends first.
        self._flush()
        gevent.kill(self._flushing)
        if self._writer is None:
            return
        try:
            self._thread.call(self._writer.close)
        except OSError as error:
            self._fail(error)
        else:
            logger.info("%s requests are in %s", f"{self._written:,}", self.path)
