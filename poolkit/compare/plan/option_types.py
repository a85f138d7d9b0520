"""The click types of `poolkit compare`: a text of the command line becomes a checked value.

Every start of `poolkit` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from poolkit.masking import masked

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:  # click before 8.4 has no type argument here
    _Type = click.ParamType

_LABEL = re.compile(r"[\w.-]+")


class TargetUrl(NamedTuple):
    """`NAME[@LABEL]=URL`: a deployed target."""

    table: str
    """The name of its table in pyproject.toml."""
    name: str
    """Its name in the run: the table's, with the label."""
    url: str


class PoolSize(NamedTuple):
    """The size of a pool: `pool_size`, and the overflow beyond it."""

    pool_size: int
    max_overflow: int

    @property
    def most(self) -> int:
        """The most connections of one such pool."""
        return self.pool_size + self.max_overflow

    @property
    def label(self) -> str:
        """Its name in a target's name, such as `10` or `10+5`."""
        return str(self) if self.max_overflow else str(self.pool_size)

    def __str__(self) -> str:
        """Return the size as reports have it, such as `10+5`."""
        return f"{self.pool_size}+{self.max_overflow}"


class OwnerMark(NamedTuple):
    """`NAME[@LABEL]=KIND:VALUE`: what the connections of a deployed target are known by."""

    target: str
    """Its name in the run, with the label."""
    kind: str
    """`name` (application_name), `user` or `address`."""
    value: str


class Integer(click.IntRange):
    """A whole number within bounds."""

    name = "integer"


class Number(click.FloatRange):
    """A number within bounds; NaN is outside of them."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or fail."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class Levels(_Type):
    """The levels of a run: numbers with commas between them, each one once.

    Args:
        number: the type of each.
    """

    name = "levels"

    def __init__(self, number: Integer | Number) -> None:
        self._number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the numbers from the lowest to the highest, or fail."""
        found = sorted(self._number.convert(part, param, ctx) for part in value.split(","))
        # As they are printed: two levels of the same name would share a folder.
        names = [f"{number:g}" for number in found]
        for name in names:
            if names.count(name) > 1:
                self.fail(f"{name} is named twice; --repeat repeats a measurement", param, ctx)
        return tuple(found)


class Names(_Type):
    """Names with commas between them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the names in their order."""
        return tuple(name.strip() for name in value.split(",") if name.strip())


class PoolSizes(_Type):
    """Sizes of pools with commas between them, each one once: `5` for 5+0, or `10+5`."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the sizes from the smallest to the largest, or fail."""
        number = Integer(0, 10_000)
        found = []
        for part in value.split(","):
            size, plus, overflow = part.strip().partition("+")
            pool_size = Integer(1, 10_000).convert(size, param, ctx)
            found.append(PoolSize(pool_size, number.convert(overflow, param, ctx) if plus else 0))
        for size in found:
            if found.count(size) > 1:
                self.fail(f"{size} is named twice; --repeat repeats a measurement", param, ctx)
        return tuple(sorted(found, key=lambda size: (size.most, size.pool_size)))


class DeployedTarget(_Type):
    """A deployed target: `NAME[@LABEL]=URL`."""

    name = "name[@label]=url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parts, or fail without a password in the message."""
        name, _, url = value.partition("=")
        table, at, label = name.strip().partition("@")
        if not table or not url.strip() or (at and not _LABEL.fullmatch(label)):
            self.fail(
                "wanted NAME=URL or NAME@LABEL=URL, such as web@staging=https://api.example.com, "
                f"found {masked(value)!r}",
                param,
                ctx,
            )
        return TargetUrl(table, f"{table}{at}{label}", url.strip().rstrip("/"))


class Connections(_Type):
    """The connections of a deployed target: `NAME[@LABEL]=KIND:VALUE`."""

    name = "name[@label]=kind:value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parts, or fail."""
        target, _, mark = value.partition("=")
        kind, _, known = mark.partition(":")
        if not target.strip() or kind not in ("name", "user", "address") or not known.strip():
            self.fail(
                "wanted NAME@LABEL=name:APPLICATION_NAME, NAME@LABEL=user:ROLE or "
                f"NAME@LABEL=address:IP, such as web@eu=user:web_eu, found {value!r}",
                param,
                ctx,
            )
        if kind == "address":
            try:
                ipaddress.ip_network(known.strip(), strict=False)
            except ValueError:
                self.fail(f"{known!r} is no IP address and no network", param, ctx)
        return OwnerMark(target.strip(), kind, known.strip())


MAX_CONNECTIONS = Integer(10, 10_000)
USERS = Levels(Integer(1, 10_000))
RATES = Levels(Number(0.01, 100_000))
