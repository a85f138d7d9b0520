"""The limits of a database server, by its engine and its instance class, tier or SKU.

    class_limit          Amazon RDS and Aurora, by DB instance class
    serverless_limit     Aurora Serverless v2, by capacity units
    formula_limit        both, by a parameter group's value
    platform_limit       Google Cloud SQL by tier, Azure Database by SKU, and servers in containers
    useful_connections   the second ceiling

The numbers stand in `tables/instance_classes.toml` and `tables/platforms.toml`, with their sources.

Reserves: PostgreSQL, 19.3.1 (superuser_reserved_connections, 3); Amazon RDS User Guide, "Working
with parameters on your RDS for PostgreSQL DB instance" (rds.rds_superuser_reserved_connections,
2). MySQL and MariaDB accept one connection more than max_connections, from an administrator only.
RDS's own administrator is always connected. So one is subtracted, which is on the safe side.

The second ceiling is the connections that a server can put to use, not those that it accepts.
PostgreSQL wiki, "Number Of Database Connections": throughput is best at about (2 x cores) + disks
active connections. `poolkit experiment pool_size` tried 2 to 40 connections on 2 cores. Queries that
compute gained nothing above 5 (2 x 2 + 1), queries that read nothing above 20; only queries that
wait gained up to 40. So 2 per vCPU + 1 can compute at once, and no load is known to gain from more
than 20 per vCPU. The knee of a run of one's own takes the place of that number.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.model import Limit, Quantity, known, unknown
from poolkit.budget.read.values import whole_number
from poolkit.budget.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from poolkit.budget.model import Database, SourceLocation

SERVER_RESERVE = {"superuser_reserved_connections": known(3, "")}
"""PostgreSQL's parameters that reserve connections by default."""
RDS_RESERVE = {**SERVER_RESERVE, "rds.rds_superuser_reserved_connections": known(2, "")}
MOST = {"postgres": 262_143, "mysql": 100_000}
"""The largest max_connections that a server accepts, by its engine."""
BUSY_PER_VCPU, MOST_PER_VCPU = 2, 20
_GIB = 1024**3
_MEMORY = "DBInstanceClassMemory"
_FACTORS = re.compile(rf"{_MEMORY}((?:\s*[*/]\s*\d+)*)")
_LOG = re.compile(rf"log\(\s*{_MEMORY}\s*/\s*(\d+)\s*\)\s*\*\s*(\d+)")
_CALL = re.compile(r"(LEAST|GREATEST|SUM)\((.*)\)", re.IGNORECASE)
_CALLS: dict[str, Callable[[Iterable[int]], int]]
_CALLS = {"LEAST": min, "GREATEST": max, "SUM": sum}


class Size(NamedTuple):
    """The memory in GiB and the processors of a class."""

    gib: float
    vcpus: float


def engine_kind(name: str) -> str:
    """Return `postgres`, `mysql` (MariaDB too), `mssql` or `oracle` for a platform's engine, or ""."""
    kinds = table("platforms")["engines"].items()
    return next((kind for kind, words in kinds if any(each in name.lower() for each in words)), "")


def reserve(kind: str, numbers: Mapping[str, Quantity] = SERVER_RESERVE) -> Quantity:
    """Return the connections that a server reserves; for PostgreSQL, the sum of its parameters."""
    if kind == "mysql":
        return known(1, "1 for an administrator")
    if kind not in ("postgres", ""):
        return known(0, "none by default")
    if unclear := next((each for each in numbers.values() if each.value is None), None):
        return unclear
    labels = [
        f"{number} {name}{f' ({number.origin})' if number.origin else ''}"
        for name, number in numbers.items()
        if number.value
    ]
    return known(sum(number.value or 0 for number in numbers.values()), " + ".join(labels))


def setting(
    found: Any, name: str, origin: str, where: SourceLocation | None, most: int = 262_143
) -> Quantity:
    """Return a setting as a number; unknown if the server would not accept it."""
    if found is None:
        return unknown(f"{name} is known only after deployment", where)
    number = whole_number(found, name, origin, where)
    # Only a reserve may be 0.
    least = int("reserved" not in name)
    if number.value is None or least <= number.value <= most:
        return number
    return unknown(f"{name} must be from {least} to {most:,}, not {number}", where)


# -- Amazon RDS and Aurora ------------------------------------------------------------------


def class_size(instance_class: str) -> Size | None:
    """Return the size of a class, such as `db.m7g.large`; None if it is not in the table."""
    classes, name = table("instance_classes"), instance_class.strip().removeprefix("db.")
    family, _, size = name.partition(".")
    if family not in classes["large"] or size not in classes["sizes"]:
        return None
    factor = classes["sizes"][size]
    vcpus = classes["vcpus"].get(name, max(1.0, 2.0 * factor))
    return Size(classes["large"][family] * factor, vcpus)


def evaluated(text: str, memory: float) -> int:
    """Evaluate one of RDS's formulas of the memory.

    Source: Amazon RDS User Guide, "Specifying DB parameters".

    Raises:
        ArithmeticError, RecursionError, ValueError: it has something else in it.
    """
    text = text.strip(" {}")
    if match := _CALL.fullmatch(text):
        return _CALLS[match[1].upper()](evaluated(part, memory) for part in match[2].split(","))
    if match := _LOG.fullmatch(text):
        return round(math.log2(memory / int(match[1]))) * int(match[2])
    if match := _FACTORS.fullmatch(text):
        for operator, operand in re.findall(r"([*/])\s*(\d+)", match[1]):
            memory = memory * int(operand) if operator == "*" else memory / int(operand)
        return int(memory)
    return int(text)


def formula_limit(
    engine: str,
    gib: float,
    found: Any = None,
    origin: str = "",
    where: SourceLocation | None = None,
) -> Limit:
    """Return the limits of a server with this much memory, with their bounds.

    Args:
        engine: RDS's name, such as `postgres` or `aurora-mysql`.
        gib: the memory of its class; 0: unknown.
        found: what a parameter group sets, a number or a formula; None: the engine's default.
        origin: its source.
        where: the line that sets the memory or the parameter.

    """
    classes, kind = table("instance_classes"), engine_kind(engine)
    name = f"aurora-{kind}" if engine.startswith("aurora") else kind
    found = found or classes["formulas"].get(name) or classes["formulas"].get(kind, "")
    most, reserved = MOST.get(kind, MOST["postgres"]), reserve(kind, RDS_RESERVE)
    number = setting(found, "max_connections", origin, where, most)
    limit = Limit(max_connections=number, reserved=reserved, engine=kind)
    if _MEMORY not in str(found):
        return limit
    # DBInstanceClassMemory is less than the memory of the class, and AWS does not say how much.
    usable = gib * classes["memory"]["share"] * _GIB - classes["memory"]["fixed_bytes"]
    sizes = (usable * (1 - classes["memory"]["error"]), usable, gib * _GIB)
    try:
        lowest, value, highest = (evaluated(found, each if gib else math.nan) for each in sizes)
    except (ArithmeticError, RecursionError, ValueError):
        why = "is not evaluated" if gib else "needs the memory of a known instance class"
        reason = f"max_connections is the formula {found!r:.500}, which {why}"
        return limit.exact(unknown(reason, where))
    number = setting(value, "max_connections", origin or found, where, most)
    formula = f"{found} of {gib:g} GiB, less what RDS needs."
    bounds = {} if lowest == highest else {"lowest": lowest, "highest": highest}
    return limit.exact(number, formula=formula, **bounds)


def class_limit(
    engine: str, instance_class: str, version: str = "", where: SourceLocation | None = None
) -> Limit:
    """Return the limits of an RDS or Aurora instance: a measured value if there is one.

    Only a value that was measured on the same version of the engine is exact. An engine or class
    without a rule has unknown limits.
    """
    classes, size, kind = table("instance_classes"), class_size(instance_class), engine_kind(engine)
    limit = formula_limit(engine, size.gib if size else 0, where=where)
    limit = dataclasses.replace(limit, instance_class=instance_class, vcpus=size and size.vcpus)
    if kind not in MOST or size is None:
        missing = f"the engine {engine}" if kind not in MOST else f"instance class {instance_class}"
        why = f"there is no rule for {missing}; give --max-connections"
        return limit.exact(unknown(why, where))
    if engine.startswith("aurora") and kind == "mysql":
        # AWS publishes these results for every class.
        return limit.exact(limit.max_connections, formula=limit.formula)
    wanted = (instance_class, engine)
    rows = [row for row in classes["measured"] if (row["class"], row["engine"]) == wanted]
    # The row of the same version comes first, else the order of the table.
    row = min(rows, key=lambda row: row["version"] != version, default=None)
    if row is None:
        return limit
    value, on = row["max_connections"], f"{engine} {row['version']}".strip()
    measured, bounds = f"Measured on {on}: {value:,} ({row['source']}).", dict[str, Any]()
    # The formula's upper limit, such as 5,000, holds for every version.
    if limit.lowest is not None and not (version and row["version"] == version):
        lowest = int(value * (1 - classes["memory"]["error"]))
        bounds = {"lowest": lowest, "highest": limit.highest}
    return limit.exact(known(value, measured, where), formula=measured, **bounds)


def serverless_limit(engine: str, low: float, high: float, where: SourceLocation | None) -> Limit:
    """Return the limits of Aurora Serverless v2 by its range of capacity units (ACU)."""
    published = table("instance_classes")["serverless"]
    limit = formula_limit(engine, high * 2, where=where)
    formula = f"For {low:g} to {high:g} ACU (Aurora User Guide, Maximum connections)."
    if exact := published.get(limit.engine, {}).get(f"{high:g}"):
        limit = limit.exact(known(exact, formula, where), formula=formula)
    value, cap = limit.max_connections.value, published["small_minimum_cap"]
    if limit.engine != "postgres" or low >= 1 or value is None:
        return limit
    formula += f" A minimum of {low:g} ACU caps it at {cap:,}."
    bounds = {"lowest": limit.lowest, "highest": limit.highest and min(limit.highest, cap)}
    return limit.exact(known(min(value, cap), formula, where), formula=formula, **bounds)


def smallest_class(database: Database, connections: int) -> str | None:
    """Return the smallest class of the database's family that has enough connections in any case."""
    family = database.instance_class.strip().removeprefix("db.").partition(".")[0]
    engine = f"aurora-{database.engine}" if database.kind == "Aurora" else database.engine
    regular = table("instance_classes")["regular"]
    for size in next((each["sizes"] for each in regular if family in each["families"]), ()):
        limit = class_limit(engine, f"db.{family}.{size}")
        if (limit.lowest or limit.max_connections.value or 0) >= connections:
            return limit.instance_class
    return None


# -- other platforms ------------------------------------------------------------------------


def platform_limit(
    platform: str,
    engine: str,
    product: str = "",
    settings: Mapping[str, Any] | None = None,
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
    number, vcpus = unknown(f"{why}; give --max-connections", where), None
    matches = ((re.fullmatch(each, product, re.IGNORECASE), gib) for each, gib in facts["sizes"])
    match, gib = next((each for each in matches if each[0]), (None, 0))
    if match is not None:
        found = match.groupdict()
        vcpus = float(found.get("vcpus", 1))
        memory = int(found["megabytes"]) / 1024 if "megabytes" in found else gib * vcpus
        rows = facts["connections"].get(kind, ())
        if fitting := [connections for least, connections in rows if least <= memory]:
            number = known(fitting[-1], f"{product or engine}: {facts['page']}", where)
    if settings and "max_connections" in settings:
        written, most = settings["max_connections"], MOST.get(kind, MOST["postgres"])
        number = setting(written, "max_connections", str(where or product), where, most)
    own = facts.get("reserved", {}).get(kind)
    reserved = known(*own) if own else reserve(kind)
    return Limit(max_connections=number, reserved=reserved, engine=kind, vcpus=vcpus)


# -- the second ceiling ---------------------------------------------------------------------


def useful_connections(database: Database, knee: int | None = None) -> int | None:
    """Return the most connections with any effect; None where the processors are unknown.

    Args:
        database: its instance class decides the number of processors.
        knee: the connections at the knee of a run against such a server.

    """
    if knee is not None or database.vcpus is None:
        return knee
    return int(MOST_PER_VCPU * database.vcpus)


def useful_note(database: Database, connections: int, knee: int | None = None) -> str:
    """Return a sentence if this many connections cannot all be put to use, else nothing."""
    most, vcpus = useful_connections(database, knee), database.vcpus
    if most is None or connections <= most:
        return ""
    why = "the run's latency grew faster than its throughput above"
    if knee is None and vcpus is not None:
        busy = int(BUSY_PER_VCPU * vcpus) + 1
        why = f"about {busy} can compute, and no load is known to gain from more than"
    on = "" if vcpus is None else f" on {vcpus:g} vCPU"
    return f"{connections:,} connections{on} will not run at once: {why} {most:,}."
