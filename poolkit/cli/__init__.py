"""The command `poolkit`: one function a command, which imports what it needs.

budget.py, compare.py and deploy.py have the commands of these packages.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import traceback
from pathlib import Path

from poolkit.errors import DeploymentFailed, PoolkitError, how_to_install

try:
    import click
except ImportError:  # the library alone was installed
    sys.exit(f"poolkit: the command line needs click; install it with: {how_to_install('cli')}")

from poolkit.cli import budget, deploy, init, smoke
from poolkit.cli.extras import require, require_posix
from poolkit.masking import masked, printable

try:
    from poolkit.cli import compare, drill, experiment
except ModuleNotFoundError as error:
    # The image of a service leaves poolkit.compare out, and runs `poolkit db upgrade`.
    if error.name not in ("poolkit.compare", "poolkit.local"):
        raise
    compare = drill = experiment = None  # type: ignore[assignment]

FAULT = 70
"""The exit status after an unexpected exception (sysexits.h, EX_SOFTWARE)."""

_path = click.Path(path_type=Path)
# In an argument, `ps` shows a password to every user of the machine.
_DATABASE_VARIABLES = ["POOLKIT_DATABASE_URL", "DATABASE_URL"]
# For a terminal that lacks these characters. One letter each, or columns would shift.
_PLAIN = {"✓": "+", "✗": "x", "–": "-", "·": ".", "…": "."}  # noqa: RUF001  (a dash in a table)


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that a stream cannot encode, so that a figure is never lost to one."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in text), error.end


def _shown(message: str) -> str:
    """Return a message for the terminal, without passwords and control characters."""
    return printable(masked(message))


class _Command(click.Group):
    """A group whose expected failures are one line and an exit status, not a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        codecs.register_error("plain letters", _in_plain_letters)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="plain letters")
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "poolkit"
            message = error.format_message().rstrip(".")
            click.echo(f"poolkit: {_shown(message)} (see {command} --help)", err=True)
            ctx.exit(2)
        except (PoolkitError, ValueError, OSError) as error:
            click.echo(f"poolkit: {_shown(str(error))}", err=True)
            # 1: AWS began and failed. Any other error was found before anything was changed.
            ctx.exit(1 if isinstance(error, DeploymentFailed) else 2)
        except KeyboardInterrupt:
            # As a shell reports a program that SIGINT ended.
            ctx.exit(130)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except Exception:  # noqa: BLE001  (a fault of poolkit, which must not look like a result)
            click.echo(_shown(traceback.format_exc()), err=True)
            click.echo("poolkit: this is a fault of poolkit; please report these lines", err=True)
            ctx.exit(FAULT)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="poolkit")
def main() -> None:
    """One SQLAlchemy codebase as a Lambda function, a web service and a worker.

    Engine presets, measured connection counts, and a deployment that fits its database.
    """


@main.command()
@click.argument("target", required=False)
@click.option("--environment", "-e", default="dev", show_default=True, help="preset numbers")
@click.option("--driver", help="another driver than the preset's own, such as asyncpg")
@click.option("--all", "every", is_flag=True, help="print the table of all presets")
@click.option("--copy", type=_path, metavar="FILE", help="copy the preset file to FILE")
def preset(
    *, target: str | None, environment: str, driver: str | None, every: bool, copy: Path | None
) -> None:
    """Print an engine preset as code to paste, with the reasons.

    TARGET is web, web_async, worker, lambda, lambda_warm, lambda_proxy or script.
    """
    from poolkit.config.presets import TARGETS, preset  # noqa: PLC0415
    from poolkit.preset_code import copy_presets, preset_code, preset_table  # noqa: PLC0415

    if copy is not None:
        click.echo(f"{copy_presets(copy)}: needs SQLAlchemy and your driver, nothing else")
    elif every:
        click.echo(preset_table())
    elif target is None:
        raise click.UsageError(f"name a target ({', '.join(TARGETS)}), or --all, or --copy FILE")
    else:
        click.echo(preset_code(preset(target, environment), driver))


@main.command()
@click.argument("url", metavar="[DATABASE_URL]", required=False, envvar=_DATABASE_VARIABLES)
@click.option(
    "--interval", type=float, default=1.0, show_default=True, help="seconds between samples"
)
@click.option("--json", "as_json", is_flag=True, help="print a JSON document per line, for scripts")
@click.option("--once", is_flag=True, help="print one sample and end")
def watch(*, url: str | None, interval: float, as_json: bool, once: bool) -> None:
    """Show live who is connected to a database.

    Connections are shown by target, instance and state. DATABASE_URL is by default the variable
    POOLKIT_DATABASE_URL, or DATABASE_URL. The role needs pg_monitor. The view ends with q or Ctrl-C.
    """
    require_posix("watch")
    from poolkit.activity.watch import watch  # noqa: PLC0415

    watch(url, interval_s=interval, as_json=as_json, once=once)


@main.command()
@click.argument("url", metavar="[DATABASE_URL]", required=False, envvar=_DATABASE_VARIABLES)
@click.option(
    "--seconds", type=float, default=10.0, show_default=True, help="length of the sampling"
)
@click.option(
    "--interval", type=float, default=0.1, show_default=True, help="seconds between samples"
)
@click.option(
    "--metrics",
    metavar="URL",
    help="URL of the application's /metrics, to show the lines that hold connections",
)
@click.option("--json", "as_json", is_flag=True, help="print a JSON document, for scripts")
def holders(
    *, url: str | None, seconds: float, interval: float, metrics: str | None, as_json: bool
) -> None:
    """Show who holds a database's connections, and whether SQL runs on them.

    Samples pg_stat_activity. Connections of poolkit's targets are grouped by target; connections of other
    applications by name, user and address. The default of DATABASE_URL is the variable
    POOLKIT_DATABASE_URL, or DATABASE_URL. Without pg_monitor, the role sees the states of its own
    connections only. Ctrl-C ends the sampling early and prints the results.
    """
    require_posix("holders")
    from poolkit.activity.holders import holders  # noqa: PLC0415

    holders(url, seconds=seconds, interval_s=interval, as_json=as_json, metrics_url=metrics)


db = click.Group(
    "db",
    help="""Upgrade or check the database's schema, or make the application's role.

    The DATABASE_* variables name the database, as for a deployable.
    """,
)
_migrations_option = click.option(
    "--migrations",
    "name",
    envvar="POOLKIT_MIGRATIONS",
    metavar="PATH",
    help="the folder with Alembic's env.py, an alembic.ini, or a module; default: [tool.poolkit] "
    "migrations in pyproject.toml",
)


@db.command()
@_migrations_option
def upgrade(name: str | None) -> None:
    """Apply the missing migrations, and run the project's `schema` command.

    Two at once are safe: the second waits for the first. A `schema` command has its own rules.
    """
    from poolkit.commands import ProjectCommand, upgrade_url  # noqa: PLC0415
    from poolkit.config.settings import Settings  # noqa: PLC0415
    from poolkit.migrations import Migrations  # noqa: PLC0415
    from poolkit.project import Project  # noqa: PLC0415

    project = Project.find()
    settings = Settings.from_environ(default_target="script")
    if name or "migrations" in project.table or "schema" not in project.commands:
        before, after = Migrations.find(name, settings).upgrade()
        unchanged = f"already at {after}"
        click.echo(
            unchanged if before == after else f"upgraded from {before or 'empty'} to {after}"
        )
    if "schema" in project.commands:
        ProjectCommand.of(
            project,
            "schema",
            database_url=upgrade_url(settings),
            environment=settings.environment,
        ).run()


@db.command()
@_migrations_option
def current(name: str | None) -> None:
    """Print the database's revision, and whether there are newer ones."""
    from poolkit.config.settings import Settings  # noqa: PLC0415
    from poolkit.migrations import Migrations  # noqa: PLC0415

    found = Migrations.find(name, Settings.from_environ(default_target="script"))
    revision, heads = found.current(), found.heads()
    state = "behind" if found.knows(revision) else "unknown to this version"
    note = "" if revision in heads else f" ({state}: the latest is {', '.join(heads)})"
    click.echo(f"{revision or 'empty'}{note}")


@db.command()
@_migrations_option
@click.option(
    "--revision",
    "revisions",
    multiple=True,
    help="a revision that the database must have, instead of the latest; repeatable",
)
def check(name: str | None, revisions: tuple[str, ...]) -> None:
    """Fail while the database lacks migrations that this version of the program has.

    A database that a later version has upgraded passes, so that an earlier version can be deployed
    again. With APPLICATION_SECRET_ARN, the application's role must also exist and log in. Exit
    status: 0, or 2 if one of these is missing.
    """
    from poolkit import database_role  # noqa: PLC0415
    from poolkit.config.settings import Settings  # noqa: PLC0415
    from poolkit.migrations import Migrations  # noqa: PLC0415

    settings = Settings.from_environ(default_target="script")
    click.echo(Migrations.find(name, settings).check(revisions))
    if os.environ.get("APPLICATION_SECRET_ARN"):
        database_role.check(settings, database_role.ApplicationRole.from_environ())


@db.command()
@click.option("--environment", "-e", metavar="NAME", help="run it inside the VPC of an environment")
@click.option("--iam", is_flag=True, help="log in with IAM tokens of RDS, without a password")
@click.option("--rotate", is_flag=True, help="make a new password in APPLICATION_SECRET_ARN")
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    help="minutes to follow the task; only with -e",
)
def role(*, environment: str | None, iam: bool, rotate: bool, wait: float) -> None:
    """Create the application's role, or bring an existing one up to date.

    The role reads and writes the rows of all tables, also of later ones, and cannot change the
    schema. With -e, a task of the stack "migrate" does it, inside the VPC of the environment.

    Without -e, run this as the schema's owner, which the DATABASE_* variables name. These variables
    describe the role:

    \b
    APPLICATION_SECRET_ARN         its login, as a secret of AWS; or the next three
    APPLICATION_USER               its name; default: app
    APPLICATION_PASSWORD           its password
    APPLICATION_PASSWORD_FILE      a file with its password
    APPLICATION_SCHEMAS            its schemas, with commas; default: public
    APPLICATION_STATEMENT_TIMEOUT  in ms; default: 15000
    """  # noqa: D301 - click reads the backspace: these lines are not wrapped
    if iam and rotate:
        raise click.UsageError("--iam logs in without a password, so there is none to --rotate")
    if environment is not None:
        require("infra")
        from poolkit.deploy.migrate.command import update_role  # noqa: PLC0415

        update_role(environment, iam=iam, rotate=rotate, wait_minutes=wait)
        return
    from poolkit import database_role  # noqa: PLC0415
    from poolkit.config.settings import Settings  # noqa: PLC0415

    settings = Settings.from_environ(default_target="script")
    if rotate:
        notes = database_role.rotate(settings)
        wanted = database_role.ApplicationRole.from_environ()
    else:
        wanted = database_role.ApplicationRole.from_environ(iam=iam)
        notes = database_role.create_or_update(settings, wanted)
    for note in notes:
        click.echo(note)
    login = "IAM tokens" if iam else "a password"
    click.echo(f"{wanted.name} logs in with {login} and uses {', '.join(wanted.schemas)}")


main.add_command(db)
main.add_command(init.init)
main.add_command(budget.budget)
main.add_command(deploy.bootstrap)
main.add_command(deploy.package)
main.add_command(deploy.deploy)
main.add_command(deploy.migrate)
main.add_command(deploy.destroy)
main.add_command(smoke.smoke)
main.add_command(deploy.reboot)
main.add_command(deploy.status)
main.add_command(deploy.rehearse)
if compare is not None:
    main.add_command(compare.compare)
    main.add_command(compare.up)
    main.add_command(compare.report)
    main.add_command(drill.drill)
    main.add_command(experiment.experiment)
