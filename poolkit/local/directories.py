"""Private directories for what servers write, where the account that writes can reach them."""

import shutil
import tempfile
from pathlib import Path

from poolkit.errors import StateDirectoryError
from poolkit.local.accounts import Account


def private_directory(state_dir: Path, *, prefix: str, account: Account) -> Path:
    """Make a new directory under `state_dir` for one server's files.

    Under root, `state_dir` may lie where the server's account cannot go (a home directory
    that is closed to others): then the directory is made under the system's temporary one.

    Raises:
        StateDirectoryError: neither place can be written to or reached.

    """
    directory = _make(state_dir, prefix)
    if account.is_own or account.can_enter(directory):
        return directory
    shutil.rmtree(directory)
    directory = _make(Path(tempfile.gettempdir()), prefix)
    if account.can_enter(directory):
        return directory
    shutil.rmtree(directory)
    raise StateDirectoryError(
        f"the account {account.name}, which runs the servers because root may not, can reach "
        f"neither {state_dir} nor {directory.parent}: set TMPDIR to a directory open to all"
    )


def _make(parent: Path, prefix: str) -> Path:
    """Make a new directory that other accounts may pass through but not list."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=parent.resolve()))
        directory.chmod(0o711)
    except OSError as error:
        raise StateDirectoryError(
            f"cannot make a directory under {parent}: {error.strerror}; "
            "name one that can be written to"
        ) from None
    return directory


def last_lines(path: Path, *, count: int = 5) -> str:
    """Return the last lines of a log, for an error message; empty if there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-count:])


def why(error: OSError) -> str:
    """Say in a few words why files could not be made.

    `shutil.copytree` gathers what failed in one error, of which the first is enough.
    """
    if isinstance(error, shutil.Error):
        first = error.args[0][0]
        return str(first[-1]) if isinstance(first, tuple) else str(error.args[0])
    return error.strerror or str(error)
