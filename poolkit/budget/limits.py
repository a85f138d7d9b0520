"""The limits of a database server, by its engine and its instance class, tier or SKU.

    class_limit        Amazon RDS and Aurora, by DB instance class
    serverless_limit   Aurora Serverless v2, by capacity units
    cloud_sql_limit    Google Cloud SQL, by tier
    azure_limit        Azure Database, flexible server, by SKU
    server_limit       a server with the defaults of its software

A `Limit` has the fields of `Database` of the same names: `Database(name=..., **vars(limit))`. The
numbers stand in `tables/instance_classes.toml` and `tables/platforms.toml`, with their sources.

Reserves: PostgreSQL, 19.3.1 (superuser_reserved_connections, 3); Amazon RDS User Guide, "Working
with parameters on your RDS for PostgreSQL DB instance" (rds.rds_superuser_reserved_connections,
2). MySQL and MariaDB accept one connection more than max_connections, from an administrator only.
RDS's own administrator is always connected. So one is subtracted, which is on the safe side.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.model import Quantity, known, unknown
from poolkit.budget.read.values import whole_number
from poolkit.budget.tables import table
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping

    from poolkit.budget.model import Database, SourceLocation

RESERVES = {"superuser_reserved_connections": 3, "rds.rds_superuser_reserved_connections": 2}
"""PostgreSQL's and RDS's parameters that reserve connections, with their defaults."""
MOST = {"postgres": 262_143, "mysql": 100_000}
"""The largest max_connections that a server accepts, by its engine."""
GIB = 1024**3
_SMALLER = {"micro": 1 / 8, "small": 1 / 4, "medium": 1 / 2, "large": 1.0, "xlarge": 2.0}
_CLASS = re.compile(r"(?:db\.)?(\w+)\.(micro|small|medium|large|(\d{0,3})xlarge)")
# Families that have every size from large (t: micro) to 24xlarge (t: 2xlarge; 6g, 7g: 16xlarge).
_REGULAR = re.compile(r"t3|t4g|[mr](5|6g|6i|7g|7i|8g)")
_MEMORY = re.compile(r"\{?\s*DBInstanceClassMemory((?:\s*[*/]\s*\d+)*)\s*\}?")
_LOG = re.compile(r"\{?\s*log\(\s*DBInstanceClassMemory\s*/\s*(\d+)\s*\)\s*\*\s*(\d+)\s*\}?")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The limits of a server; the fields are those of `Database`."""

    max_connections: Quantity
    reserved: Quantity
    engine: str
    formula: str = ""
    instance_class: str = ""
    lowest: int | None = None
    highest: int | None = None
    carried: int | None = None
    vcpus: float | None = None


class Size(NamedTuple):
    """The memory in GiB and the processors of a class, tier or SKU."""

    gib: float
    vcpus: float


def engine_kind(name: str) -> str:
    """Return `postgres`, `mysql` (MariaDB too), `mssql` or `oracle` for a platform's engine, or ""."""
    kinds = table("platforms")["engines"].items()
    return next((kind for kind, words in kinds if any(each in name.lower() for each in words)), "")


def reserve(kind: str, names: tuple[str, ...] = ("superuser_reserved_connections",)) -> Quantity:
    """Return the connections that a server reserves by default."""
    if kind == "mysql":
        return known(1, "1 for an administrator")
    if kind not in ("postgres", ""):
        return known(0, "none by default")
    origin = " + ".join(f"{RESERVES[name]} {name}" for name in names)
    return known(sum(RESERVES[name] for name in names), origin)


def setting(
    found: Any, name: str, origin: str, where: SourceLocation | None, most: int = 262_143
) -> Quantity:
    """Return a setting as a number; unknown if the server would not accept it."""
    if found is None:
        return unknown(f"{name} is known only after deployment", where)
    try:
        number = whole_number(found, name, origin, where)
    except TemplateError as error:
        return unknown(str(error).removeprefix(f"{where}: "), where)
    # Only a reserve may be 0.
    least = int("reserved" not in name)
    if number.value is None or least <= number.value <= most:
        return number
    return unknown(f"{name} must be from {least} to {most:,}, not {number}", where)


# -- Amazon RDS and Aurora ------------------------------------------------------------------


def class_size(instance_class: str) -> Size | None:
    """Return the size of a class, such as `db.m7g.large`; None if it is not in the table."""
    classes, match = table("instance_classes"), _CLASS.fullmatch(instance_class.strip())
    if match is None or match[1] not in classes["large"]:
        return None
    factor = 2.0 * int(match[3]) if match[3] else _SMALLER[match[2]]
    vcpus = classes["vcpus"].get(f"{match[1]}.{match[2]}", max(1.0, 2 * factor))
    return Size(classes["large"][match[1]] * factor, vcpus)


def evaluated(text: str, memory: float) -> int | None:
    """Evaluate RDS's formulas of the memory; None if a formula has something else in it.

    Source: Amazon RDS User Guide, "Specifying DB parameters".
    """
    text = text.strip()
    if match := re.fullmatch(r"(LEAST|GREATEST|SUM)\((.*)\)", text, re.IGNORECASE):
        parts = [evaluated(part, memory) for part in match[2].split(",")]
        numbers = [part for part in parts if part is not None]
        functions: dict[str, Callable[[list[int]], int]]
        functions = {"LEAST": min, "GREATEST": max, "SUM": sum}
        return functions[match[1].upper()](numbers) if len(numbers) == len(parts) else None
    if (match := _LOG.fullmatch(text)) and int(match[1]):
        return round(math.log2(memory / int(match[1]))) * int(match[2])
    if match := _MEMORY.fullmatch(text):
        for operator, operand in re.findall(r"([*/])\s*(\d+)", match[1]):
            if int(operand) == 0:
                return None
            memory = memory * int(operand) if operator == "*" else memory / int(operand)
        return int(memory)
    return int(text) if text.isdecimal() else None


def formula_limit(engine: str, gib: float, text: str, where: SourceLocation | None) -> Limit:
    """Return the limits of a server with this much memory by RDS's formula, with their bounds.

    Args:
        engine: RDS's name, such as `postgres` or `aurora-mysql`.
        gib: the memory of its class. DBInstanceClassMemory is less, and AWS does not say how much.
        text: the formula; empty: the engine's default.
        where: the line that sets the memory or the formula.

    """
    classes, kind = table("instance_classes"), engine_kind(engine)
    name = f"aurora-{kind}" if engine.startswith("aurora") else kind
    text = text or classes["formulas"].get(name) or classes["formulas"].get(kind, "")
    usable = gib * classes["memory"]["share"] * GIB - classes["memory"]["fixed_bytes"]
    sizes = (usable * (1 - classes["memory"]["error"]), usable, gib * GIB)
    # A formula of AWS's grammar is short; a longer text could only exhaust the interpreter.
    is_short = bool(gib) and len(text) < 500
    lowest, value, highest = (evaluated(text, each) if is_short else None for each in sizes)
    why = "is not evaluated" if gib else "needs the memory of a known instance class"
    quantity = unknown(f"max_connections is the formula {text!r}, which {why}", where)
    formula = text
    if value is not None:
        quantity = setting(value, "max_connections", text, where, MOST.get(kind, MOST["mysql"]))
        formula += f" of {gib:g} GiB, less what RDS needs: about {value:,}"
        formula += "." if lowest == highest else f", from {lowest:,} to {highest:,}."
    lowest, highest = (None, None) if lowest == highest else (lowest, highest)
    reserved = reserve(kind, tuple(RESERVES))
    limit = Limit(max_connections=quantity, reserved=reserved, engine=kind, formula=formula)
    return dataclasses.replace(limit, lowest=lowest, highest=highest)


def class_limit(
    engine: str, instance_class: str, version: str = "", where: SourceLocation | None = None
) -> Limit:
    """Return the limits of an RDS or Aurora instance: a measured value if there is one.

    Only a value that was measured on the same version of the engine is exact. An engine or class
    without a rule has unknown limits.
    """
    classes, size, kind = table("instance_classes"), class_size(instance_class), engine_kind(engine)
    limit = formula_limit(engine, size.gib if size else 0, "", where)
    limit = dataclasses.replace(limit, instance_class=instance_class, vcpus=size and size.vcpus)
    if kind not in MOST or size is None:
        missing = f"the engine {engine}" if kind not in MOST else f"instance class {instance_class}"
        why = f"there is no rule for {missing}; give --max-connections"
        return dataclasses.replace(limit, max_connections=unknown(why, where), formula="")
    if engine.startswith("aurora") and kind == "mysql":
        # AWS publishes these results for every class.
        return dataclasses.replace(limit, lowest=None, highest=None)
    wanted = (instance_class, engine)
    rows = [row for row in classes["measured"] if (row["class"], row["engine"]) == wanted]
    # The sort is stable: the row of the same version comes first, else the order of the table.
    for row in sorted(rows, key=lambda row: row["version"] != version)[:1]:
        value, on = row["max_connections"], f"{engine} {row['version']}".strip()
        formula, lowest, highest = f"Measured on {on}: {value:,} ({row['source']}).", None, None
        # The formula's upper limit, such as 5,000, holds for every version.
        if limit.lowest is not None and not (version and row["version"] == version):
            lowest, highest = int(value * (1 - classes["memory"]["error"])), limit.highest
            formula += f" Another version may have from {lowest:,} to {highest:,}."
        limit = dataclasses.replace(limit, lowest=lowest, highest=highest, formula=formula)
        limit = dataclasses.replace(limit, max_connections=known(value, formula, where))
    return limit


def serverless_limit(engine: str, low: float, high: float, where: SourceLocation | None) -> Limit:
    """Return the limits of Aurora Serverless v2 by its range of capacity units (ACU)."""
    published = table("instance_classes")["serverless"]
    limit = formula_limit(engine, high * 2, "", where)
    exact = published.get(limit.engine, {}).get(f"{high:g}")
    value, cap = exact or limit.max_connections.value, published["small_minimum_cap"]
    if value is None:
        return limit
    formula = f"For a maximum of {high:g} ACU (Aurora User Guide, Maximum connections)."
    lowest, highest = (None, None) if exact else (limit.lowest, limit.highest)
    if limit.engine == "postgres" and low < 1:
        formula += f" A minimum of {low:g} ACU caps it at {cap:,}."
        value, highest = min(value, cap), highest and min(highest, cap)
    limit = dataclasses.replace(limit, formula=formula, lowest=lowest, highest=highest)
    return dataclasses.replace(limit, max_connections=known(value, formula, where))


def smallest_class(database: Database, connections: int) -> str | None:
    """Return the smallest class of the database's family that has enough connections in any case."""
    family = database.instance_class.strip().removeprefix("db.").partition(".")[0]
    engine = f"aurora-{database.engine}" if database.kind == "Aurora" else database.engine
    if not _REGULAR.fullmatch(family):
        return None
    sizes = ["large", "xlarge", *(f"{times}xlarge" for times in (2, 4, 8, 12, 16, 24))]
    if family.startswith("t"):
        sizes = ["micro", "small", "medium", *sizes[:3]]
    for size in sizes:
        limit = class_limit(engine, f"db.{family}.{size}")
        if (limit.lowest or limit.max_connections.value or 0) >= connections:
            return limit.instance_class
    return None


def with_classes(database: Database, classes: Mapping[str, int]) -> Database:
    """Return a database with the max_connections that `classes` declares for its class, if any.

    `classes` is `[tool.poolkit.budget.classes]` of pyproject.toml. It wins over the tables, and not
    over a parameter group, which sets max_connections whatever the class is.
    """
    if database.instance_class not in classes:
        return database
    origin = "tool.poolkit.budget.classes in pyproject.toml"
    quantity = known(classes[database.instance_class], origin, database.where)
    return dataclasses.replace(
        database, max_connections=quantity, formula="", lowest=None, highest=None
    )


def class_line(
    instance_class: str, engine: str, version: str, max_connections: int, date: dt.date | str
) -> str:
    """Return a measured value as TOML: for pyproject.toml, and for the table of this package."""
    template: str = table("instance_classes")["line"]
    return template.format(instance_class, engine, version, max_connections, date)


# -- other platforms ------------------------------------------------------------------------


def platform_limit(
    platform: str,
    engine: str,
    product: str,
    settings: Mapping[str, Any],
    where: SourceLocation | None = None,
) -> Limit:
    """Return max_connections as it is set, else the platform's default for the memory.

    Args:
        platform: `cloud_sql`, `azure` or `servers`, as in `tables/platforms.toml`.
        engine: the platform's name of it, such as `POSTGRES_17`.
        product: a tier such as `db-custom-2-7680`, or a SKU such as `GP_Standard_D2ds_v5`.
        settings: its flags or server parameters; None as the value of one that is unknown.
        where: the line of the product.

    """
    facts, kind = table("platforms")[platform], engine_kind(engine)
    why = f"{product} with {engine} has no default in the table ({facts['page']})"
    quantity, vcpus = unknown(f"{why}; give --max-connections", where), None
    for pattern, gib in facts["sizes"]:
        if vcpus is None and (match := re.fullmatch(pattern, product, re.IGNORECASE)):
            found = match.groupdict()
            vcpus = float(found.get("vcpus", 1))
            memory = int(found["megabytes"]) / 1024 if "megabytes" in found else gib * vcpus
            rows = facts["connections"].get(kind, ())
            fitting = [connections for least, connections in rows if least <= memory]
            if fitting:
                quantity = known(fitting[-1], f"{product or engine}: {facts['page']}", where)
    if "max_connections" in settings:
        most, origin = MOST.get(kind, max(MOST.values())), str(where or product)
        quantity = setting(settings["max_connections"], "max_connections", origin, where, most)
    own = facts.get("reserved", {}).get(kind)
    reserved = known(*own) if own else reserve(kind)
    return Limit(max_connections=quantity, reserved=reserved, engine=kind, vcpus=vcpus)


cloud_sql_limit = functools.partial(platform_limit, "cloud_sql")
azure_limit = functools.partial(platform_limit, "azure")


def server_limit(engine: str, where: SourceLocation | None = None) -> Limit:
    """Return the defaults of PostgreSQL, MySQL or MariaDB in a container."""
    return dataclasses.replace(platform_limit("servers", engine, "", {}, where), vcpus=None)
