"""Every exception that poolkit raises.

    PoolkitError
    ├── ConfigurationError (ValueError)      a setting is missing, wrong or unsafe
    ├── CredentialsError                     a password or token could not be fetched
    ├── PoolExhausted (TimeoutError)         no connection became free within pool_timeout
    └── DatabaseUnavailable (ConnectionError)  the database cannot be reached, or is full

Each also is what callers already catch where Python has a word for it. The preset file
raises plain `ValueError`, because it works alone.
"""

from __future__ import annotations


class PoolkitError(Exception):
    """Anything that poolkit itself has to say."""


class ConfigurationError(PoolkitError, ValueError):
    """A setting is missing, wrong or unsafe; the message names it and what is allowed."""


class CredentialsError(PoolkitError):
    """A password or token could not be fetched; the message names where from."""


class PoolExhausted(PoolkitError, TimeoutError):
    """No connection became free within `pool_timeout` seconds."""

    retry_after = 1
    """Seconds after which trying again makes sense: connections come back all the time."""


class DatabaseUnavailable(PoolkitError, ConnectionError):
    """The database cannot be reached, refuses connections, or went away in the middle."""

    retry_after = 5
    """Seconds after which trying again makes sense: a restart or failover takes longer."""
