"""The functions' own settings; `poolkit.config.settings` has those of the database.

| variable | meaning | default |
|---|---|---|
| `LAMBDA_MAX_BODY_BYTES` | a longer request body is answered with 413 | 1 MiB |
| `POWERTOOLS_SERVICE_NAME` | `service` in logs and metrics | `articles` |
| `POWERTOOLS_METRICS_NAMESPACE` | the metrics' namespace | `poolkit` |
| `POWERTOOLS_LOG_LEVEL` | read by Powertools' Logger itself | `INFO` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from articles.validation import MAX_BODY_BYTES
from poolkit.config.variables import refuse_misspelt
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

TARGETS: Final = ("lambda", "lambda_warm", "lambda_proxy")
"""The presets that a function can run with; the first is the default."""

_MAX_BODY_BYTES = "LAMBDA_MAX_BODY_BYTES"
# AWS Lambda Developer Guide, "Defined runtime environment variables".
_RUNTIME_S_OWN = ("LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR")


class FunctionSettings(NamedTuple):
    """The values of the table above."""

    max_body_bytes: int
    service: str
    namespace: str

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> FunctionSettings:
        """Read the variables above.

        Raises:
            ConfigurationError: a value is wrong, or a name is misspelt.
        """
        refuse_misspelt(environ, (_MAX_BODY_BYTES,), prefix="LAMBDA_", platform=_RUNTIME_S_OWN)
        text = (environ.get(_MAX_BODY_BYTES) or str(MAX_BODY_BYTES)).strip()
        # isdecimal alone is true of digits of other scripts, too.
        if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= MAX_BODY_BYTES:
            raise ConfigurationError(
                f"{_MAX_BODY_BYTES} must be a whole number from 1 to {MAX_BODY_BYTES}, not {text!r}"
            )
        return cls(
            max_body_bytes=int(text),
            service=environ.get("POWERTOOLS_SERVICE_NAME") or "articles",
            namespace=environ.get("POWERTOOLS_METRICS_NAMESPACE") or "poolkit",
        )
