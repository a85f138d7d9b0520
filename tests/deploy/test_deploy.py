"""`poolkit deploy`, `status` and `destroy` as a user runs them, against moto's server."""

import contextlib
import os
import pty
import re
import select
import signal

import boto3
import pytest
from deploy.conftest import write_package
from deploy.stacks_project import ORDER
from moto.cloudformation.models import cloudformation_backends
from poolkit_command import POOLKIT, refused, succeeded
from processes import started

from poolkit.deploy.progress import make_console, make_table, print_table
from poolkit.deploy.stacks import StackLine, status_cells

STACKS = [f"shop-dev-{template}" for template in ORDER]


@pytest.fixture(autouse=True)
def bucket(aws):
    s3 = boto3.client("s3")
    s3.create_bucket(
        Bucket="shop-code", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return s3


def deploy(poolkit, target, *words, environment="dev", **options):
    # The schema's check runs a task: test_migrate.py.
    unchecked = ("--no-lint", "--no-budget", "--no-schema-check")
    return poolkit("deploy", target, "-e", environment, *unchecked, "--yes", *words, **options)


def statuses():
    return {
        stack["StackName"]: stack["StackStatus"]
        for stack in boto3.client("cloudformation").describe_stacks()["Stacks"]
    }


def test_the_whole_sequence(poolkit, poolkit_process, shop, bucket):
    """Everything is deployed in order, deployed again, updated, shown, and removed."""
    first = deploy(poolkit_process, "all")
    assert first.returncode == 0, first.stdout + first.stderr
    assert [
        line.split()[-1] for line in first.stdout.splitlines() if "Plan: create" in line
    ] == STACKS
    assert set(statuses().values()) == {"CREATE_COMPLETE"}
    assert "ok credentials: account 123456789012" in first.stdout
    assert "CREATE_COMPLETE" in first.stdout
    assert "QueueUrl" in first.stdout
    (code,) = bucket.list_objects_v2(Bucket="shop-code")["Contents"]
    assert f"s3://shop-code/{code['Key']}" in first.stdout

    again = deploy(poolkit, "all")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("nothing to change") == len(STACKS)
    assert "already at s3://shop-code" in again.stdout

    template = shop / "infra/worker.yaml"
    template.write_text(template.read_text().replace("shop-jobs,", "shop-jobs, DelaySeconds: 5,"))
    write_package(shop / "build/lambda.zip", "second")
    succeeded(deploy(poolkit, "all"), "modify")
    assert statuses()["shop-dev-worker"] == "UPDATE_COMPLETE"
    assert statuses()["shop-dev-lambda"] == "UPDATE_COMPLETE"
    assert bucket.list_objects_v2(Bucket="shop-code")["KeyCount"] == 2

    status = poolkit("status", "-e", "dev")
    assert status.stdout.count("_COMPLETE") == len(STACKS)

    gone = poolkit_process("destroy", "all", "-e", "dev", "--yes-delete", "shop-dev")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    removed = [line for line in gone.stdout.splitlines() if line.endswith(": removed")]
    assert [line.split(":")[0] for line in removed] == STACKS[::-1]
    assert statuses() == {}
    assert poolkit("status").stdout.count("not deployed") == 2 * len(STACKS)


def test_an_environment_may_have_an_underscore_in_its_name(poolkit, shop):
    """AWS takes none in a stack's name, so the stacks have a hyphen there, from plan to removal."""
    environments = shop / "infra/environments"
    (environments / "dev.toml").rename(environments / "high_traffic.toml")
    assert deploy(poolkit, "network", environment="high_traffic").returncode == 0
    assert list(statuses()) == ["shop-high-traffic-network"]
    assert re.search("shop-high-traffic-network +CREATE_COMPLETE", poolkit("status").stdout)
    removed = poolkit("destroy", "all", "-e", "high_traffic", "--yes-delete", "shop-high-traffic")
    assert removed.returncode == 0, removed.stderr
    assert statuses() == {}


BRACKETS = """\
  Configuration:
    Description: With [brackets] and :smile:, as it is.
    Value: !Sub awsvpcConfiguration={subnets=[subnet-1,${Vpc}],assignPublicIp=DISABLED}
  Arn: {Value: "arn:aws:secretsmanager:eu-central-1:123456789012:secret:rds!db-0123-4567-89ab-cdef"}
"""


def test_outputs_are_printed_whole_and_as_aws_returns_them(poolkit, shop):
    """On a narrow terminal, too: no value is cut, and none is read as a style."""
    template = shop / "infra/network.yaml"
    template.write_text(template.read_text() + BRACKETS)
    answer = deploy(poolkit, "network", COLUMNS="80")
    assert answer.returncode == 0, answer.stderr
    (stack,) = boto3.client("cloudformation").describe_stacks()["Stacks"]
    assert len(stack["Outputs"]) == 4
    lines = answer.stdout.splitlines()
    assert "# With [brackets] and :smile:, as it is." in lines
    for output in stack["Outputs"]:
        assert f"{output['OutputKey']} = {output['OutputValue']}" in lines


def test_status_prints_aws_reason_as_it_is(capsys, monkeypatch):
    """What looks like a closing tag is a log group's name in brackets."""
    monkeypatch.setenv("COLUMNS", "120")
    line = StackLine(
        environment="dev",
        template="lambda",
        stack="shop-dev-lambda",
        status="ROLLBACK_COMPLETE",
        condition="failed",
        means="",
        next="",
        reason="failed to create [/aws/lambda/x]",
    )
    table = make_table("status", "changed", "protected")
    table.add_row(*status_cells(line))
    print_table(make_console(), table)
    assert "ROLLBACK_COMPLETE failed to create [/aws/lambda/x]" in capsys.readouterr().out


FAILING = """\
  ABucket:
    Type: AWS::S3::Bucket
    Properties: {BucketName: x}
  Second: {Type: AWS::SQS::Queue}
  Third: {Type: AWS::SQS::Queue}
"""


def break_template(shop, name):
    """Put a resource that AWS refuses first, and two that are cancelled because of it."""
    file = shop / f"infra/{name}.yaml"
    file.write_text(file.read_text().replace("Resources:\n", f"Resources:\n{FAILING}"))


def test_a_failed_creation_says_the_first_cause_once(poolkit, shop):
    """Exit status 1 and one cause; the cancelled resources are not taken for it."""
    break_template(shop, "network")
    answer = deploy(poolkit, "all")
    assert answer.returncode == 1
    assert "shop-dev-network ended in ROLLBACK_COMPLETE. First cause: ABucket" in answer.stderr
    assert "AWS::S3::Bucket) CREATE_FAILED: Resource handler returned message" in answer.stderr
    assert "cancelled" not in answer.stderr
    assert "cancelled" in answer.stdout  # the events themselves are not hidden
    assert list(statuses()) == ["shop-dev-network"]  # nothing after it was begun

    again = deploy(poolkit, "network")
    assert again.returncode == 2
    assert "is in ROLLBACK_COMPLETE: its creation failed" in again.stderr
    assert "poolkit destroy network --environment dev" in again.stderr

    removed = poolkit("destroy", "network", "-e", "dev", "--yes-delete", "shop-dev-network")
    assert removed.returncode == 0, removed.stderr
    assert statuses() == {}


def test_a_failed_update_leaves_what_was_there(poolkit, shop):
    """The stack is as before, and a repaired template is deployed the ordinary way."""
    assert deploy(poolkit, "network").returncode == 0
    good = (shop / "infra/network.yaml").read_text()
    break_template(shop, "network")
    answer = deploy(poolkit, "network")
    assert answer.returncode == 1
    assert "ended in UPDATE_ROLLBACK_COMPLETE. First cause: ABucket" in answer.stderr
    (shop / "infra/network.yaml").write_text(good + "  Again: {Value: 1}\n")
    assert deploy(poolkit, "network").returncode == 0


def test_without_a_terminal_agreement_must_be_given(poolkit):
    """CI gets an error that names --yes; AWS is not called."""
    answer = poolkit("deploy", "network", "-e", "dev", "--no-lint")
    refused(answer, "no terminal to ask for agreement to the plan; pass --yes")
    assert answer.stdout == ""


def test_a_plan_alone_leaves_nothing(poolkit):
    """--plan-only prints what would be made, and neither stack nor change set remain."""
    answer = poolkit("deploy", "network", "-e", "dev", "--no-lint", "--plan-only")
    succeeded(answer, "Plan: create shop-dev-network", "1 to add")
    assert statuses() == {}
    assert cloudformation_backends["123456789012"]["eu-central-1"].change_sets == {}


def test_a_plan_of_all_says_what_has_to_be_deployed_first(poolkit, shop):
    """On an empty account most stacks lack what others are to give; that is no failure."""
    words = ("deploy", "all", "-e", "dev", "--no-lint", "--no-budget", "--plan-only")
    answer = poolkit(*words)
    assert answer.returncode == 0, answer.stderr
    assert "Plan: create shop-dev-network" in answer.stdout
    assert "shop-dev-web: can be planned when network is deployed" in answer.stdout
    assert "shop-dev-dashboard: can be planned when worker is deployed" in answer.stdout
    assert statuses() == {}

    assert deploy(poolkit, "network").returncode == 0
    assert "Plan: create shop-dev-web" in poolkit(*words).stdout
    # Alone it could not be deployed, so it cannot be planned either.
    alone = poolkit("deploy", "lambda", *words[2:])
    refused(alone, "shop-dev-database is not deployed. Next: poolkit deploy database")


def test_a_plan_of_all_waits_for_an_output_that_a_stack_is_to_get(poolkit, shop):
    """A new reference to a stack that is there is planned when that has been updated."""
    assert deploy(poolkit, "network").returncode == 0
    network, web = shop / "infra/network.yaml", shop / "infra/environments/dev.toml"
    network.write_text(network.read_text() + "  Second: {Value: !Ref Vpc}\n")
    web.write_text(web.read_text().replace("{network.VpcId}", "{network.Second}"))
    answer = poolkit("deploy", "all", "-e", "dev", "--no-lint", "--no-budget", "--plan-only")
    assert answer.returncode == 0, answer.stderr
    assert "Plan: update shop-dev-network" in answer.stdout
    assert "shop-dev-web: can be planned when network is deployed" in answer.stdout


@pytest.mark.parametrize(("typed", "made"), [("y\n", True), ("n\n", False), ("\x03", False)])
def test_on_a_terminal_the_plan_is_agreed_to(shop, aws, typed, made):
    """Yes deploys; no and Ctrl-C leave nothing behind."""
    code, shown = on_terminal(["deploy", "network", "-e", "dev", "--no-lint"], shop, aws, typed)
    assert "Deploy this? [y/N]" in shown
    assert (code == 0) is (typed != "\x03")
    assert list(statuses().values()) == (["CREATE_COMPLETE"] if made else [])


UNDO = re.compile(r"undo it: poolkit (.*)")


def test_ctrl_c_says_what_goes_on_and_how_to_undo_it(poolkit, shop, aws, gate):
    """Watching ends, AWS does not; a new stack has nothing to go back to, but can be removed."""
    gate.close()
    words = ("deploy", "network", "-e", "dev", "--no-lint", "--no-budget", "--yes")
    with started(POOLKIT, *words, cwd=shop, environ={"COLUMNS": "200"}) as process:
        process.wait_for("CREATE_IN_PROGRESS")
        assert process.terminate(signal.SIGINT) == 130, process.text
    out = process.stdout
    assert "stopped watching. AWS continues with shop-dev-network." in out
    assert "poolkit status network --environment dev --wait" in out
    assert "Traceback" not in process.stderr
    assert statuses() == {"shop-dev-network": "CREATE_IN_PROGRESS"}

    answer = poolkit("deploy", "network", "-e", "dev", "--rollback")
    assert answer.returncode == 2
    (undo,) = UNDO.findall(out)
    assert f"it is being created. Next: poolkit {undo}\n" in answer.stderr
    undone = poolkit(*undo.split(), "--yes-delete", "shop-dev-network")
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert statuses() == {}


def test_a_stack_at_work_is_left_alone(poolkit, shop, gate):
    """A second deployment is refused with the status."""
    assert deploy(poolkit, "network").returncode == 0
    cloudformation, at_work = boto3.client("cloudformation"), {"StackName": "shop-dev-network"}
    template = (shop / "infra/network.yaml").read_text() + "  More: {Value: 1}\n"
    cloudformation.create_change_set(
        ChangeSetName="mine", ChangeSetType="UPDATE", TemplateBody=template, **at_work
    )
    gate.close()
    cloudformation.execute_change_set(ChangeSetName="mine", **at_work)
    refused(deploy(poolkit, "network"), "is in UPDATE_IN_PROGRESS: it is being updated")
    rolled_back = poolkit("deploy", "network", "-e", "dev", "--rollback")
    succeeded(rolled_back, "shop-dev-network: UPDATE_ROLLBACK_COMPLETE")


def test_a_rollback_without_a_change_to_undo_is_refused(poolkit):
    """A whole stack stays unchanged."""
    assert "there is no stack" in poolkit("deploy", "network", "-e", "dev", "--rollback").stderr
    assert deploy(poolkit, "network").returncode == 0
    refused(poolkit("deploy", "network", "-e", "dev", "--rollback"), "no unfinished change to undo")


ASKS = re.compile(rb"(\[y/N\]|Type .* to remove it): ?$")


def on_terminal(arguments, cwd, environ, typed):
    """Run poolkit on a terminal of its own and type once it asks."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe(POOLKIT, ["poolkit", *arguments], os.environ | environ | {"COLUMNS": "200"})
    shown, wait_s = b"", None
    with contextlib.suppress(OSError):  # Linux ends a terminal's output with an error
        while True:
            if not select.select([terminal], [], [], wait_s)[0]:
                # readline does not notice an interrupt that comes after the prompt is drawn and
                # before it waits for a key; with the next key it does, and no other process reads it.
                os.write(terminal, b"\n")
                continue
            chunk = os.read(terminal, 4096)
            if not chunk:
                break
            shown += chunk
            if typed and ASKS.search(shown):
                os.write(terminal, typed.encode())
                wait_s, typed = (1 if typed == "\x03" else None), ""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()
