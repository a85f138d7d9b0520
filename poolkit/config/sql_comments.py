"""The line and the unit of work in a comment behind each statement, in SQLCommenter's format.

    SELECT ... /*unit='GET%20/orders',where='app/views.py:41%20in%20list_orders'*/

With `POOLKIT_SQL_COMMENTS=true`, `pg_stat_activity`, the server's log and `poolkit holders` show which line
ran a statement. Off by default: each pair of a line and a unit is a statement of its own for the
caches of prepared statements in the drivers and in poolers. Their number is bounded by the code; a
trace id or a request id would make each statement a new one, so there is none. `pg_stat_statements`
ignores comments, and shows the first one of a statement.

The format is <https://open-telemetry.github.io/opentelemetry-sqlcommenter/specifications>.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import event

from poolkit.config.holds import _call_site, current_unit

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ("comment_statements",)


def comment_statements(engine: Engine) -> None:
    """Write the line and the unit of work behind each statement of an engine.

    Args:
        engine: of an asynchronous engine its `sync_engine`.
    """
    # With %s and %(name)s as placeholders, the drivers read a percent sign twice.
    is_formatted = engine.dialect.paramstyle in ("format", "pyformat")

    def before_cursor_execute(  # noqa: PLR0917  (SQLAlchemy's signature)
        connection: Any,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,  # noqa: FBT001
    ) -> tuple[str, Any]:
        # The specification: a statement that has a comment stays as it is. A hint is one, too.
        if "/*" in statement or "--" in statement:
            return statement, parameters
        site, unit = _call_site(sys._getframe(1)), current_unit()  # noqa: SLF001
        # Without parameters, and told so, a driver reads the statement as it is.
        is_plain = not parameters and getattr(context, "no_parameters", False)
        comment = _comment(
            site.text, "" if unit is None else unit.label, is_doubled=is_formatted and not is_plain
        )
        bare = statement.rstrip()
        end = ";" if bare.endswith(";") else ""
        return f"{bare.removesuffix(';')} {comment}{end}", parameters

    event.listen(engine, "before_cursor_execute", before_cursor_execute, retval=True)


@lru_cache(maxsize=4096)
def _comment(where: str, unit: str, *, is_doubled: bool) -> str:
    pairs = {"unit": unit, "where": where} if unit else {"where": where}
    # Neither a quote nor an asterisk is left, so nothing ends the value or the comment.
    text = ",".join(f"{key}='{quote(value, safe='/:')}'" for key, value in pairs.items())
    return f"/*{text.replace('%', '%%') if is_doubled else text}*/"
