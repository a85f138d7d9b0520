"""DB instance classes, their memory, and the max_connections that RDS derives from it.

Memory: Amazon RDS User Guide, "Hardware specifications for DB instance classes"; the sizes of
a class are those of the EC2 instance type of the same name. max_connections: the same,
"Maximum number of database connections": LEAST({DBInstanceClassMemory/9531392}, 5000).

DBInstanceClassMemory is the class's memory less what the operating system and RDS use. AWS
publishes the rest for one series of sizes: Aurora User Guide, "Maximum connections for Aurora
Serverless v2", where 1 ACU is 2 GiB. The estimate here interpolates that series: 8 GiB give 823
connections, and not the 901 of the whole memory.
"""

from __future__ import annotations

import re
from itertools import pairwise

from poolkit.errors import BudgetError

GIB = 1024**3
BYTES_PER_CONNECTION = 9_531_392
MOST_BY_FORMULA = 5_000
SMALL_MINIMUM_CAP = 2_000
"""Aurora Serverless v2 with a minimum of 0 or 0.5 ACU (the same section)."""
SUPERUSER_RESERVED = 3
"""superuser_reserved_connections, PostgreSQL's default."""
RDS_RESERVED = 2
"""rds.rds_superuser_reserved_connections, RDS's default."""
PUBLISHED_IN = "Aurora User Guide, Maximum connections for Aurora Serverless v2; 1 ACU = 2 GiB"

# Family -> memory in GiB of its size `large`.
_LARGE: dict[str, float] = {
    **dict.fromkeys(("t2", "t3", "t4g"), 8),
    **dict.fromkeys(("m4", "m5", "m5d", "m6g", "m6gd", "m6i", "m6id", "m6idn", "m6in"), 8),
    **dict.fromkeys(("m7g", "m7gd", "m7i", "m8g", "m8gd", "m8i"), 8),
    **dict.fromkeys(("r5", "r5b", "r5d", "r6g", "r6gd", "r6i", "r6id", "r6idn", "r6in"), 16),
    **dict.fromkeys(("r7g", "r7gd", "r7i", "r8g", "r8gd", "r8i", "z1d"), 16),
    **dict.fromkeys(("c6gd",), 4),
    **dict.fromkeys(("r4",), 15.25),
    **dict.fromkeys(("x2g", "x2gd"), 32),
    **dict.fromkeys(("x2iedn", "x2iezn"), 64),
    **dict.fromkeys(("x2idn",), 32),
}
_SMALLER = {"micro": 1 / 8, "small": 1 / 4, "medium": 1 / 2, "large": 1.0, "xlarge": 2.0}
_CLASS = re.compile(
    r"(?:db\.)?(?P<family>[a-z]\w*)\.(?P<size>micro|small|medium|large|(?P<times>\d*)xlarge)(?:\.\S+)?"
)

# Families that have every size from large (t: micro) to 24xlarge (t: 2xlarge; 6g, 7g: 16xlarge).
_REGULAR = re.compile(r"t3|t4g|[mr](5|6g|6i|7g|7i|8g)")

# Maximum ACU -> max_connections, as published; between two points the line is straight.
_PUBLISHED = ((1, 189), (4, 823), (8, 1_669), (16, 3_360), (32, 5_000))


def memory_gib(instance_class: str) -> float:
    """Return the nominal memory of a class, such as `db.m7g.large`, in GiB.

    Raises:
        BudgetError: there is no such class in the table.
    """
    match = _CLASS.fullmatch(instance_class.strip())
    if match is None or match["family"] not in _LARGE:
        raise BudgetError(
            f"instance class {instance_class!r} is unknown; known families: "
            f"{', '.join(sorted(_LARGE))} (or give --max-connections, or --database-url)"
        )
    size, times = match["size"], match["times"]
    factor = 2.0 * int(times) if times else _SMALLER[size]
    if match["family"] == "x2idn" and factor < 32:
        raise BudgetError(f"instance class {instance_class!r} is unknown: x2idn begins at 16xlarge")
    return _LARGE[match["family"]] * factor


def nominal_connections(gib: float) -> int:
    """Return the result of RDS's formula for all of the memory, more than the server will have."""
    return min(MOST_BY_FORMULA, int(gib * GIB // BYTES_PER_CONNECTION))


def planned_connections(gib: float) -> int:
    """Return the result of the formula for the memory that RDS leaves to PostgreSQL."""
    return min(nominal_connections(gib), serverless_connections(gib / 2))


def class_formula(instance_class: str, gib: float) -> str:
    """Return a text about the way max_connections of a class is derived."""
    return (
        f"{instance_class} has {gib:g} GiB of memory. RDS's formula "
        f"LEAST(DBInstanceClassMemory/{BYTES_PER_CONNECTION}, {MOST_BY_FORMULA}) gives "
        f"{nominal_connections(gib):,} for all of it, and about {planned_connections(gib):,} for "
        f"what RDS leaves to PostgreSQL ({PUBLISHED_IN})."
    )


def serverless_connections(acu: float) -> int:
    """Return max_connections of Aurora Serverless v2 by its maximum ACU, rounded down."""
    if acu >= _PUBLISHED[-1][0]:
        return _PUBLISHED[-1][1]
    points = list(pairwise(_PUBLISHED))
    (a, low), (b, high) = next((p for p in points if acu < p[1][0]), points[-1])
    return max(1, int(low + (high - low) * (acu - a) / (b - a)))


def smallest_class(instance_class: str, connections: int) -> str | None:
    """Return the smallest class of the same family with enough connections; None if none has."""
    match = _CLASS.fullmatch(instance_class.strip())
    if match is None or not _REGULAR.fullmatch(match["family"]):
        return None
    sizes = ["micro", "small", "medium", "large", "xlarge"]
    sizes += [f"{times}xlarge" for times in (2, 4, 8, 12, 16, 24)]
    is_burstable = match["family"].startswith("t")
    start, end = (
        (0, sizes.index("2xlarge") + 1) if is_burstable else (sizes.index("large"), len(sizes))
    )
    for size in sizes[start:end]:
        name = f"db.{match['family']}.{size}"
        try:
            if planned_connections(memory_gib(name)) >= connections:
                return name
        except BudgetError:
            continue
    return None
