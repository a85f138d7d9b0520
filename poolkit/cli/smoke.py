"""`poolkit smoke`."""

from __future__ import annotations

import os

import click


@click.command()
@click.argument("url")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--probes/--no-probes", default=True, help="request /healthz and /readyz before the paths"
)
@click.option(
    "--times",
    type=click.IntRange(min=1, max=1000),
    default=3,
    show_default=True,
    help="successful responses in a row that each path needs",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    envvar="POOLKIT_SMOKE_TIMEOUT",
    show_envvar=True,
    help="seconds until a path that is not answered is a failure",
)
def smoke(*, url: str, paths: tuple[str, ...], probes: bool, times: int, timeout_s: float) -> None:
    """Check a deployed service with a few requests.

    Requests /healthz, /readyz and each PATH of the service at URL, and expects statuses from 200
    to 299. Redirects are not followed. The variable POOLKIT_SMOKE_AUTHORIZATION is sent as the
    header Authorization. Exit status: 0, 1 if a path failed, 2 for wrong input.
    """
    from poolkit.deploy.smoke import PROBES, smoke  # noqa: PLC0415

    asked = (*(PROBES if probes else ()), *paths)
    if not asked:
        raise click.UsageError("--no-probes leaves nothing to request; name a PATH")
    authorization = os.environ.get("POOLKIT_SMOKE_AUTHORIZATION")
    if not smoke(url, asked, times=times, timeout_s=timeout_s, authorization=authorization):
        click.get_current_context().exit(1)
