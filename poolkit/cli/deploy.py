"""`poolkit package`, `bootstrap`, `migrate`, `deploy`, `status`, `destroy`, and what belongs to them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from poolkit.cli.extras import require

_repeatable = partial(click.option, multiple=True)
_path = click.Path(path_type=Path)
_architecture_option = click.option(
    "--architecture",
    type=click.Choice(["arm64", "x86_64"]),
    help="default: that of [tool.poolkit.package.TARGET], or arm64",
)
_out_option = click.option(
    "--out", type=_path, help="default: build/TARGET, with .zip for a function"
)
_environment_option = click.option(
    "--environment", "-e", required=True, help="infra/environments/NAME.toml"
)


package = click.Group(
    "package", help="Build what is deployed: a function's zip, or an image's build context."
)


@package.command("lambda")
@_architecture_option
@click.option("--python", help="the runtime's minor version  [default: 3.13]")
@_out_option
@click.option("--bytecode/--no-bytecode", default=True, help="compile the modules to bytecode")
@click.option("--interpreter", type=_path, help="the Python that compiles them")
def package_lambda(**options: Any) -> None:
    """Build the zip of the Lambda function from the lock file."""
    from poolkit.deploy.package.command import package_function  # noqa: PLC0415

    package_function(**options)


@package.command("webfunction")
@click.option("--python", help="the runtime's minor version  [default: 3.13]")
@_out_option
@click.option("--bytecode/--no-bytecode", default=True, help="compile the modules to bytecode")
@click.option("--interpreter", type=_path, help="the Python that compiles them")
def package_webfunction(**options: Any) -> None:
    """Build the zip of the web application as a Lambda Web Function, for arm64."""
    from poolkit.deploy.package.command import package_function  # noqa: PLC0415

    package_function("webfunction", **options)


def _add_image_command(name: str) -> None:
    # One function a command: click takes the options off a function when it makes a command of it.
    @package.command(
        name,
        help=f"Write the build context of the {name} image. Prints the command that builds it.",
    )
    @_architecture_option
    @_out_option
    def write_context(**options: Any) -> None:
        from poolkit.deploy.package.command import package_image  # noqa: PLC0415

        package_image(name, **options)


for _image in ("web", "worker", "loadtest"):
    _add_image_command(_image)


@click.command()
@_environment_option
@click.option("--yes", is_flag=True, help="agree to the plan without being asked, as in CI")
@click.option("--plan-only", is_flag=True, help="print the plan and change nothing")
def bootstrap(*, environment: str, yes: bool, plan_only: bool) -> None:
    """Prepare an account and an environment for deployments.

    Deploys infra/bootstrap.yaml, which the environments of an account and a region share (the
    bucket for packages, the repositories for images), and infra/access.yaml of the environment
    (its alarm topic, its roles for GitHub's workflows). A second run changes nothing.
    Exit status: 0, 1 if AWS started and failed, 2 if it was refused before that, 130 after Ctrl-C.
    """
    require("infra")
    from poolkit.deploy.bootstrap import bootstrap  # noqa: PLC0415

    bootstrap(environment, yes=yes, plan_only=plan_only)


@click.command()
@click.argument("target")
@_environment_option
@click.option("--yes", is_flag=True, help="agree to the plan without being asked, as in CI")
@click.option("--plan-only", is_flag=True, help="print the plan and change nothing")
@click.option(
    "--rollback",
    is_flag=False,
    flag_value="unfinished",
    metavar="[DIGEST]",
    help="after TARGET: undo the stack's last, unfinished change at once; with a digest, or "
    "'previous', deploy that image of the same repository",
)
@_repeatable(
    "--skip",
    metavar="NAME",
    help="with --rollback: a resource that a failed rollback leaves as it is; repeatable",
)
@_repeatable(
    "--image",
    "images",
    metavar="[TEMPLATE=]URI",
    help="the image to run, by digest or by tag; the digest of the tag is deployed; repeatable",
)
@click.option(
    "--back-to",
    type=_path,
    metavar="FILE",
    help="run the images and the package that `poolkit status --json` wrote to FILE",
)
@click.option(
    "--allow-data-loss", is_flag=True, help="agree to replace or remove resources that hold data"
)
@click.option(
    "--allow-new-name",
    is_flag=True,
    help="agree to replace or remove resources with a public name or address",
)
@_repeatable(
    "--parameter",
    "parameters",
    metavar="[TEMPLATE.]NAME=VALUE",
    help="a template's parameter; kept by later deployments; repeatable",
)
@_repeatable(
    "--reset-parameter",
    "reset_parameters",
    metavar="[TEMPLATE.]NAME",
    help="take a kept parameter back: the environment's file counts again; repeatable",
)
@click.option("--package", type=_path, help="the function's zip, if not the one in build/")
@click.option("--lint/--no-lint", default=True, help="run cfn-lint first")
@click.option("--budget/--no-budget", default=True, help="check the connection budget first")
@click.option(
    "--allow-unknown-budget",
    is_flag=True,
    help="accept a connection budget with unknown numbers, as long as the known part fits",
)
@click.option(
    "--migrate",
    "migrates",
    is_flag=True,
    help="upgrade the database's schema first, with the image that is deployed, and create the "
    "application's role if there is none",
)
@click.option(
    "--schema-check/--no-schema-check",
    default=True,
    help="refuse code with migrations that the database lacks",
)
def deploy(
    *,
    target: str,
    environment: str,
    rollback: str | None,
    skip: tuple[str, ...],
    images: tuple[str, ...],
    back_to: Path | None,
    migrates: bool,
    schema_check: bool,
    **options: Any,
) -> None:
    """Deploy a stack, or all stacks of an environment.

    TARGET is the name of a template in infra/, or "all". Stacks in `by_name_only` of the
    environment's file are not part of "all". Exit status: 0, 1 if something was changed before it
    failed, 2 if it was refused before that, 130 after Ctrl-C.
    """
    require("infra")
    from poolkit.deploy.deployment import DeployOptions  # noqa: PLC0415
    from poolkit.deploy.migrate.release import deploy  # noqa: PLC0415
    from poolkit.deploy.recorded import read_recorded  # noqa: PLC0415
    from poolkit.deploy.rollback import UNFINISHED, earlier_image, roll_back  # noqa: PLC0415

    _require_one_way(rollback, skip, images, back_to, migrates=migrates)
    if rollback == UNFINISHED:
        _require_none_ignored("plan_only", "parameters", "reset_parameters", "package")
        roll_back(target, environment, skip=skip)
        return
    if rollback:
        images = (earlier_image(target, environment, rollback),)
    if back_to:
        options["parameters"] += read_recorded(back_to, target, environment)
    chosen = DeployOptions(target=target, environment=environment, images=images, **options)
    deploy(chosen, migrate=migrates, schema_check=schema_check)


def _require_one_way(
    rollback: str | None,
    skip: tuple[str, ...],
    images: tuple[str, ...],
    back_to: Path | None,
    *,
    migrates: bool,
) -> None:
    """Check that the options name one image, or one way back. Raises `UsageError`."""
    from poolkit.deploy.rollback import UNFINISHED  # noqa: PLC0415

    if rollback is not None and not rollback:
        raise click.UsageError("--rollback has an empty value; leave it out, or give a digest")
    if skip and rollback != UNFINISHED:
        raise click.UsageError("--skip belongs to --rollback without a value")
    if rollback and images:
        raise click.UsageError("--rollback and --image both name an image; pass one of them")
    if back_to and (rollback or images):
        raise click.UsageError("--back-to names the images; leave --image and --rollback out")
    if migrates and (rollback or back_to):
        raise click.UsageError(
            "--migrate upgrades the schema, which going back does not need; leave it out"
        )


def _require_none_ignored(*names: str) -> None:
    """Check that `--rollback` has no option beside it that it would ignore. Raises `UsageError`."""
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        if parameter.name in names and ctx.params[parameter.name]:
            raise click.UsageError(
                f"--rollback without a value begins at once and ignores {parameter.opts[0]}; "
                "leave it out"
            )


@click.command()
@click.argument("target")
@_environment_option
@click.option("--yes-delete", metavar="NAME", help="the name that you would type to confirm")
@click.option(
    "--lift-protection",
    is_flag=True,
    help="first turn off the protection of stacks, databases and load balancers",
)
@_repeatable(
    "--retain",
    metavar="NAME",
    help="a resource of a stack in DELETE_FAILED that stays in the account; repeatable",
)
def destroy(*, target: str, environment: str, **options: Any) -> None:
    """Remove a stack, or all stacks of an environment.

    TARGET is the name of a template in infra/, or "all", which removes the stacks in the reverse
    order of deployment. The stacks of `poolkit bootstrap` stay. Exit status: 0, 1 if AWS started
    and failed, 2 if it was refused before that, 130 after Ctrl-C.
    """
    require("infra")
    from poolkit.deploy.removal import destroy  # noqa: PLC0415

    destroy(target, environment, **options)


@click.command()
@_environment_option
@click.option("--yes", is_flag=True, help="reboot without being asked")
def reboot(*, environment: str, yes: bool) -> None:
    """Reboot the databases that wait for it.

    A static parameter, such as max_connections, has no effect until then. Exit status: 0, 1 if AWS
    started and failed, 2 if it was refused before that, 130 after Ctrl-C.
    """
    require("infra")
    from poolkit.deploy.database import reboot  # noqa: PLC0415

    reboot(environment, yes=yes)


@click.command()
@click.argument("target", required=False)
@click.option("--environment", "-e", help="default: all of infra/environments")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@click.option("--wait", is_flag=True, help="wait until AWS no longer changes a stack")
@click.pass_context
def status(
    ctx: click.Context, *, target: str | None, environment: str | None, as_json: bool, wait: bool
) -> None:
    """Show the status of each stack, and the next step where there is one.

    TARGET is the name of a template; without it every stack is shown. Exit status: 1 if a stack
    failed, so that it needs the step that is named before it can be deployed; 0 otherwise, also
    while AWS is at work.
    """
    require("infra")
    from poolkit.deploy.database import pending_texts  # noqa: PLC0415
    from poolkit.deploy.stacks import print_status  # noqa: PLC0415

    code = print_status(environment, target, notes=pending_texts, as_json=as_json, wait=wait)
    ctx.exit(code)


@click.command()
@click.option("--environment", "-e", help="default: all of infra/environments")
@click.option("--verbose", "-v", is_flag=True, help="print the output of every step")
def rehearse(environment: str | None, *, verbose: bool) -> None:
    """Deploy, update, break, roll back and remove an environment on this machine.

    The simulated account starts empty on a port of this machine. No AWS account is needed, and the
    project's files stay as they are. The output ends with what only a real account can prove. Exit
    status: 0, 1 if a step ended in an unexpected way, 2 if it was refused.
    """
    require("rehearse")
    from poolkit.deploy.rehearsal.command import rehearse  # noqa: PLC0415

    rehearse(environment, verbose=verbose)


@click.command()
@_environment_option
@click.option("--image", help="the image with the migrations  [default: that of the stack]")
@click.option("--check", is_flag=True, help="change nothing; fail while the schema is behind")
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="minutes to follow the task",
)
def migrate(*, environment: str, image: str | None, check: bool, wait: float) -> None:
    """Upgrade the database's schema, by a task inside the VPC.

    Deploys the stack "migrate" with the image, runs its migrations and shows their log. Two at once
    are safe: the second waits. Exit status: 0, 1 if the task failed, did not start, still runs or found
    the schema behind, 2 if it was refused before anything ran, 130 after Ctrl-C, which leaves the
    task running.
    """
    require("infra")
    from poolkit.deploy.migrate.command import migrate  # noqa: PLC0415

    migrate(environment, image=image, check=check, wait_minutes=wait)
