"""The command `poolkit`: one function a command; what a command needs is imported inside it."""

from __future__ import annotations

import codecs
import io
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.errors import DeploymentFailed, PoolkitError, how_to_install

try:
    import click
except ImportError:  # the library alone was installed
    sys.exit(f"poolkit: the command line needs click; install it with: {how_to_install('cli')}")

from poolkit.compare.plan.option_types import (
    MAX_CONNECTIONS,
    RATES,
    USERS,
    DeployedTarget,
    Integer,
    Names,
    Number,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.migrations import Migrations


# On a terminal that has none of them. One character each, or columns would slip.
_PLAIN = {"✓": "+", "✗": "x", "–": "-", "·": ".", "…": "."}  # noqa: RUF001  (a dash in a table)


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in text), error.end


def _print_on_any_terminal() -> None:
    """Let no figure be lost because a terminal lacks a character."""
    codecs.register_error("plain letters", _in_plain_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain letters")


class _Command(click.Group):
    """A group whose expected failures are one line and exit status 2, not a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        _print_on_any_terminal()
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "poolkit"
            words = error.format_message().rstrip(".")
            click.echo(f"poolkit: {words} (see {where} --help)", err=True)
            ctx.exit(2)
        except (PoolkitError, ValueError, OSError) as error:
            click.echo(f"poolkit: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            # As a shell reports a program that SIGINT ended.
            ctx.exit(130)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="poolkit")
def main() -> None:
    """One SQLAlchemy codebase as a Lambda function, a web service and a worker.

    Engine presets, measured connection counts, and a fleet that fits its database.
    """


@main.command()
@click.argument("target", required=False)
@click.option("--environment", "-e", default="dev", show_default=True)
@click.option("--driver", help="another driver than the preset's own, such as asyncpg")
@click.option("--all", "every", is_flag=True, help="print the table of all presets")
@click.option(
    "--copy", type=click.Path(path_type=Path), metavar="FILE", help="copy the preset file to FILE"
)
def preset(
    *,
    target: str | None,
    environment: str,
    driver: str | None,
    every: bool,
    copy: Path | None,
) -> None:
    """Print the engine preset of TARGET as code to paste, with the reasons."""
    from poolkit.config.presets import TARGETS, preset  # noqa: PLC0415
    from poolkit.preset_code import preset_code, preset_table  # noqa: PLC0415

    if copy is not None:
        _copy_presets(copy)
    elif every:
        click.echo(preset_table())
    elif target is None:
        raise click.UsageError(f"name a target ({', '.join(TARGETS)}), or --all, or --copy FILE")
    else:
        click.echo(preset_code(preset(target, environment), driver))


def _copy_presets(file: Path) -> None:
    from poolkit.config import presets  # noqa: PLC0415

    source = Path(presets.__file__).read_text(encoding="utf-8")
    if file.is_dir():
        file /= "presets.py"
    try:
        # "x": somebody's own numbers must not be lost to a second copy.
        with file.open("x", encoding="utf-8") as out:
            out.write(source)
    except FileExistsError:
        raise FileExistsError(f"{file} exists already; it was left as it is") from None
    click.echo(f"{file}: needs SQLAlchemy and your driver, nothing else")


_targets_option = click.option(
    "--targets", type=Names(), help="names from pyproject.toml, with commas; default: all"
)


@main.command()
@_targets_option
@click.option("--users", type=USERS, help="users at once, or levels: 1,5,20  [default: 20]")
@click.option(
    "--rate",
    "rate_per_user",
    type=Number(0.01, 1_000),
    help="tasks per user and second  [default: 2; quick: 4]",
)
@click.option("--rates", type=RATES, help="open loop: tasks per second, or levels: 50,100,200")
@click.option(
    "--arrivals",
    type=click.Choice(["constant", "poisson"]),
    help="open loop: their spacing  [default: constant]",
)
@click.option(
    "--max-users",
    type=Integer(1, 100_000),
    help="open loop: the most users  [default: 2000]",
)
@click.option(
    "--repeat",
    type=Integer(1, 100),
    help="number of measurements per target and level  [default: 1]",
)
@click.option(
    "--duration",
    "duration_s",
    type=Number(1, 86_400),
    metavar="SECONDS",
    help="length of a measurement  [default: 20; quick: 6]",
)
@click.option(
    "--warm-up",
    "warm_up_s",
    type=Number(1, 3_600),
    metavar="SECONDS",
    help="load before it, at least  [default: 4; quick: 3]",
)
@click.option("--quick", is_flag=True, help="shorter measurements with 10 users")
@click.option("--environment", "-e", default="prod", show_default=True, help="preset numbers")
@click.option(
    "--max-connections",
    type=MAX_CONNECTIONS,
    default=100,
    show_default=True,
    help="limit of the embedded PostgreSQL",
)
@click.option("--database-url", help="an existing server in place of the embedded one")
@click.option(
    "--target",
    "deployed",
    type=DeployedTarget(),
    multiple=True,
    metavar="NAME[@LABEL]=URL",
    help="a deployed target; repeatable",
)
@click.option("--yes-load-this-host", "agreed", is_flag=True, help="agree to load another machine")
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    help="a condition that must hold, such as 'http.p95 < 200'; repeatable",
)
@click.option("--junit", type=click.Path(path_type=Path), help="write the verdicts as JUnit XML")
@click.option("--github", is_flag=True, help="print failures as annotations of a workflow")
@click.option("--out", type=click.Path(path_type=Path), help="a new folder for the run")
def compare(*, quick: bool, **given: Any) -> None:
    """Run every target under the same load; report connections and latency.

    Exit status: 0, 1 if a threshold does not hold, 2 for wrong input or a failure, 130 after
    Ctrl-C, 143 after SIGTERM.
    """
    from poolkit.compare.command import compare  # noqa: PLC0415
    from poolkit.compare.plan.options import options_of  # noqa: PLC0415

    command = " ".join(["poolkit", *sys.argv[1:]])
    sys.exit(compare(options_of(given, command=command, quick=quick)))


@main.command()
@_targets_option
@click.option("--environment", "-e", default="dev", show_default=True, help="preset numbers")
@click.option(
    "--max-connections",
    type=MAX_CONNECTIONS,
    default=100,
    show_default=True,
    help="limit of the embedded PostgreSQL",
)
def up(**given: Any) -> None:
    """Run the embedded stack and every target until Ctrl-C, and print the addresses."""
    from poolkit.compare.command import up  # noqa: PLC0415
    from poolkit.compare.plan.options import options_of  # noqa: PLC0415

    up(options_of(given, command="poolkit up"))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), help="the page's file, with two runs")
def report(*, run: Path, other: Path | None, out: Path | None) -> None:
    """Make the report of RUN again, or put the runs RUN and OTHER side by side."""
    from rich.console import Console  # noqa: PLC0415

    from poolkit.compare.report.write import report, report_two  # noqa: PLC0415

    if other is not None:
        report_two(run, other, Console(), out)
    elif out is not None:
        raise click.UsageError("--out is for two runs; the report of one is in its folder")
    else:
        report(run, Console())


@main.command()
@click.argument("url", metavar="[DATABASE_URL]", required=False)
@click.option("--interval", type=float, default=1.0, show_default=True, help="seconds")
@click.option("--json", "as_json", is_flag=True, help="one JSON document a line, for scripts")
@click.option("--once", is_flag=True, help="look once and end")
def watch(*, url: str | None, interval: float, as_json: bool, once: bool) -> None:
    """Show live who is connected to the database: targets, states, the oldest transaction.

    Without DATABASE_URL the variable of that name is taken. The role needs pg_monitor.
    """
    from poolkit.activity.watch.command import watch  # noqa: PLC0415

    watch(url, interval_s=interval, as_json=as_json, once=once)


@main.group()
def db() -> None:
    """Bring the database's schema up to date."""


_migrations_option = click.option(
    "--migrations",
    "module",
    envvar="POOLKIT_MIGRATIONS",
    help="the module that has them; default: [tool.poolkit] migrations in pyproject.toml",
)


@db.command()
@_migrations_option
def upgrade(module: str | None) -> None:
    """Apply what is missing. Safe as a one-off job, and when two run at once."""
    found = _migrations(module)
    before, after = found.upgrade()
    unchanged = f"already at {after}"
    click.echo(unchanged if before == after else f"upgraded from {before or 'empty'} to {after}")


@db.command()
@_migrations_option
def current(module: str | None) -> None:
    """Print the database's revision, and whether there are newer ones."""
    found = _migrations(module)
    revision, heads = found.current(), found.heads()
    place = "behind" if found.knows(revision) else "unknown to this version"
    note = "" if revision in heads else f" ({place}: the latest is {', '.join(heads)})"
    click.echo(f"{revision or 'empty'}{note}")


def _migrations(module: str | None) -> Migrations:
    from poolkit.config.settings import Settings  # noqa: PLC0415
    from poolkit.migrations import Migrations  # noqa: PLC0415

    return Migrations.find(module, Settings.from_environ(default_target="script"))


@main.group()
def package() -> None:
    """Make what is deployed: the function's zip, or an image's build context."""


_architecture_option = click.option(
    "--architecture", type=click.Choice(["arm64", "x86_64"]), help="default: arm64"
)
_out_option = click.option("--out", type=click.Path(path_type=Path), help="default: in build/")


@package.command("lambda")
@_architecture_option
@click.option("--python", help="the runtime's minor version  [default: 3.13]")
@_out_option
@click.option("--bytecode/--no-bytecode", default=True, help="compile the modules")
@click.option("--interpreter", type=click.Path(path_type=Path), help="the Python that compiles")
def package_lambda(**options: Any) -> None:
    """Make the zip of the Lambda function, from the lock file alone."""
    from poolkit.deploy.package.command import package_function  # noqa: PLC0415

    package_function(**options)


def _package_image(target: str) -> None:
    @package.command(target, help=f"Write the build context of the image of {target}.")
    @_architecture_option
    @_out_option
    def command(*, architecture: str | None, out: Path | None) -> None:
        from poolkit.deploy.package.command import package_image  # noqa: PLC0415

        package_image(target, architecture=architecture, out=out)


_package_image("web")
_package_image("worker")
_package_image("loadtest")


_environment_option = click.option(
    "--environment", "-e", required=True, help="infra/environments/NAME.toml"
)


@main.command()
@click.argument("target")
@_environment_option
@click.option("--yes", is_flag=True, help="agree to the plan without being asked, as in CI")
@click.option("--plan-only", is_flag=True, help="print the plan and change nothing")
@click.option("--rollback", is_flag=True, help="undo the stack's last, unfinished change")
@click.option("--allow-data-loss", is_flag=True, help="agree to replace what holds data")
@click.option("--parameter", "parameters", multiple=True, help="[TEMPLATE.]NAME=VALUE")
@click.option("--package", type=click.Path(path_type=Path), help="the function's zip")
@click.option("--lint/--no-lint", default=True, help="run cfn-lint before")
@click.option("--budget/--no-budget", default=True, help="check the connection budget before")
@click.option(
    "--allow-unknown-budget", is_flag=True, help="also when the fleet cannot be shown to fit"
)
def deploy(*, target: str, environment: str, rollback: bool, **options: Any) -> None:
    """Deploy the stack of TARGET, a template's name, or of all in their order.

    Stacks in `by_name_only` of the environment's file are not part of all.
    """
    from poolkit.deploy.deployment import (  # noqa: PLC0415
        DeployOptions,
        deploy,
        roll_back,
    )

    with _deploying():
        if rollback:
            roll_back(target, environment)
        else:
            deploy(DeployOptions(target=target, environment=environment, **options))


@main.command()
@click.argument("target")
@_environment_option
@click.option("--yes-delete", metavar="NAME", help="the name, instead of typing it")
def destroy(*, target: str, environment: str, yes_delete: str | None) -> None:
    """Remove the stack of TARGET, or all in the reverse order of deployment."""
    from poolkit.deploy.removal import destroy  # noqa: PLC0415

    with _deploying():
        destroy(target, environment, yes_delete=yes_delete)


@main.command()
@click.option("--environment", "-e", help="one alone; default: all of infra/environments")
def status(environment: str | None) -> None:
    """Print every stack and how it is."""
    from poolkit.deploy.stacks import print_status  # noqa: PLC0415

    print_status(environment)


@contextmanager
def _deploying() -> Iterator[None]:
    """Tell a failure in AWS (exit status 1) from a refusal (2) and from Ctrl-C (130)."""
    try:
        yield
    except DeploymentFailed as error:
        click.echo(f"poolkit: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        # As a shell reports a program that SIGINT ended.
        sys.exit(130)


@main.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--environment", "-e", default="", help="environments/NAME.toml beside the templates")
@click.option(
    "--parameters", multiple=True, metavar="KEY=VALUE|FILE", help="a template parameter, or a file"
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME=POOL+OVERFLOW[xPROCESSES][@INSTANCES]",
    help="the numbers of a service that the templates do not tell",
)
@click.option("--ignore", "ignored", multiple=True, metavar="NAME", help="do not count a service")
@click.option("--database", default="", help="the database, if there are several")
@click.option("--database-url", default="", help="read max_connections from a server")
@click.option("--max-connections", type=int, help="max_connections of the server")
@click.option("--instance-class", default="", help="RDS class of the server: db.m7g.large")
@click.option("--migrations", type=int, default=1, show_default=True, help="their connections")
@click.option("--operators", type=int, default=3, show_default=True, help="psql, monitoring")
@click.option("--reserve", type=int, help="connections that the server reserves")
@click.option("--pgbouncer-pools", type=int, help="pairs of database and user in PgBouncer")
@click.option(
    "--allow-unknown",
    is_flag=True,
    help="exit with 0 even if some numbers are unknown, as long as the known part fits",
)
@click.option(
    "--check-run", type=click.Path(path_type=Path), help="compare with a run of `poolkit compare`"
)
@click.option("--json", "form", flag_value="json", help="print JSON")
@click.option("--markdown", "form", flag_value="markdown", help="print a pull request comment")
@click.option("--github", "form", flag_value="github", help="print workflow annotations")
@click.option("--sarif", "form", flag_value="sarif", help="print SARIF 2.1.0")
def budget(*, form: str | None, check_run: Path | None, **values: Any) -> None:
    """Compare the connections that a deployment can open with the limit of its database.

    PATHS are CloudFormation or SAM templates, Kubernetes manifests, compose files, or folders of
    them; by default infra/. Exit status: 0 if it fits, 1 if it does not or if numbers are
    unknown, 2 if the input is wrong.
    """
    try:
        from poolkit.budget.command import Options, run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise PoolkitError(
            f"{error.name} is missing; install it with: {how_to_install('infra')}"
        ) from None
    sys.exit(run(Options(**values), form or "table", check_run))
