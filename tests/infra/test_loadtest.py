"""The load test's template, image and compose file: what its two kinds of task may do, and say."""

import dataclasses
import re
import shlex

import pytest
import yaml
from infra.deployed import ENVIRONMENTS, INFRA, ROOT, Deployment, deployment_of
from poolkit_command import succeeded
from processes import run_python

from poolkit.budget.cloudformation.templates import make_stacks
from poolkit.budget.command import compute_budget
from poolkit.budget.files import read_files
from poolkit.budget.model import Options
from poolkit.budget.read.parameters import ParameterValue, find_environment
from poolkit.budget.read.values import Reference
from poolkit.deploy.environment import ALL, StackEnvironment
from poolkit.errors import DeployError
from poolkit.loadtest.results_uploader import GRACE_S, read_options

BY_HAND = {"Host": "https://dev.example.org", "Run": "first", "YesLoadThisHost": "yes"}


class StartedDeployment(Deployment):
    """The stacks that a load test in dev refers to, and its own with the parameters of a manual start."""

    TEMPLATES = ("bootstrap", "access", "network", "database", "loadtest")

    def __init__(self, given):
        self.environment = "dev"
        chosen = find_environment("dev", [INFRA])
        self.tables = {name: chosen.tables[name] for name in self.TEMPLATES}
        files = [INFRA / f"{name}.yaml" for name in self.TEMPLATES]
        environment = dataclasses.replace(chosen, tables=self.tables)
        self.stacks = make_stacks(read_files(files).templates, environment, given).by_name


def deployment_with(**parameters):
    """Return the stacks of dev with the parameters of a load test that is started by hand."""
    values = BY_HAND | parameters
    return StartedDeployment({k: ParameterValue(v, "--parameter") for k, v in values.items()})


def words_of(deployment, name):
    """Give the command of a container, with a name for the bucket that AWS would give."""
    command = deployment.container(name).definition["Command"]
    parts = [getattr(word, "parts", (word,)) for word in command]
    return ["".join(p if isinstance(p, str) else "bucket" for p in word) for word in parts]


# -- started by name ------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_load_test_is_not_part_of_all(environment):
    """It is deployed when it is named; shown and removed with the others."""
    found = StackEnvironment.read(ROOT, environment)
    assert "loadtest" not in found.chosen(ALL)
    assert found.chosen("loadtest") == ["loadtest"]
    assert found.removed_with_all() == [*found.chosen(ALL), "loadtest"]


def test_what_is_deployed_by_name_is_there(tmp_path):
    """A name without a table is refused: a typing mistake would have `all` load a host."""
    file = tmp_path / "infra/environments/dev.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[stack]\nby_name_only = ["laodtest"]\n[loadtest]\n')
    with pytest.raises(DeployError, match=r"templates that have a table here \(loadtest\)"):
        StackEnvironment.read(tmp_path, "dev")


@pytest.mark.parametrize("value", ["no", "", "YES"])
def test_loading_a_host_is_agreed_to(value):
    """The parameter has no default, and one value."""
    declared = deployment_of("prod").stacks["loadtest"].section("Parameters")["YesLoadThisHost"]
    assert "Default" not in declared
    assert value not in declared["AllowedValues"]
    assert "--yes-load-this-host" in words_of(deployment_with(), "master")


# -- what the tasks are told ----------------------------------------------------------------


def test_the_master_uploads_the_files_of_locust():
    """The command is valid for the results uploader; the bucket's prefix is the run."""
    _, _, module, *words = words_of(deployment_with(LocustOptions="--max-users 50"), "master")
    assert module == "poolkit.loadtest.results_uploader"
    options = read_options(words)
    assert (options.url, options.wait) == ("s3://bucket/first", True)
    assert options.command[0] == "locust"
    assert options.command[-2:] == ("--max-users", "50")


def test_an_open_loop_is_asked_for_with_a_rate():
    """Without one each user waits for its answers."""
    assert "--arrival-rate=200" in words_of(deployment_with(ArrivalRate="200"), "master")
    assert not [word for word in words_of(deployment_with(), "master") if "arrival" in word]


def test_the_master_waits_for_all_workers():
    """As many as there are tasks, each of them one process."""
    deployment = deployment_with(Workers="8")
    words = words_of(deployment, "master")
    assert words[words.index("--expect-workers") + 1] == "8"
    assert deployment.resource("loadtest", "WorkerService").get("DesiredCount") == "8"
    assert "--processes" not in words_of(deployment, "load")


def test_the_workers_know_the_masters_name():
    """What they ask for is what Cloud Map has, on the port that Locust listens at."""
    deployment = deployment_with()
    host = words_of(deployment, "load")[-1]
    name = deployment.resource("loadtest", "MasterName").get("Name")
    assert host == f"{name}.{deployment.resource('loadtest', 'Namespace').get('Name')}"
    ports = {rule.get("FromPort") for rule in reports(deployment)}
    mappings = deployment.container("master").definition["PortMappings"]
    ports |= {each["ContainerPort"] for each in mappings}
    assert ports == {5557}


def reports(deployment):
    rules = deployment.of_type("AWS::EC2::SecurityGroupIngress")
    return [rule for rule in rules if rule.stack.name == "loadtest"]


def commands():
    """Give the Locust command lines of the template and of the compose file."""
    deployment = deployment_with(ArrivalRate="200", Host="http://127.0.0.1:1")
    yield read_options(words_of(deployment, "master")[3:]).command
    yield words_of(deployment, "load")
    for service in compose_file()["services"].values():
        command = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", service["command"])
        yield shlex.split(command.replace("http://web:8000", "http://127.0.0.1:1"))


@pytest.mark.process
@pytest.mark.sample
def test_locust_takes_every_option(tmp_path):
    """Its own and the plugin's: it would list the users, and says nothing else."""
    for command in commands():
        program, *words = (word.replace("/app/", f"{ROOT}/") for word in command)
        assert program == "locust"
        succeeded(run_python("-m", "locust", *words, "--list", cwd=tmp_path), "Reader")


# -- who may do what ------------------------------------------------------------------------


def test_only_the_master_reaches_the_database_and_the_bucket(deployment):
    """Workers have neither a role, nor the clients' security group, nor a variable."""
    clients = Reference("network", "DatabaseClientSecurityGroup")
    master, worker = (
        deployment.resource("loadtest", f"{name}Service") for name in ("Master", "Worker")
    )
    where = ("NetworkConfiguration", "AwsvpcConfiguration", "SecurityGroups")
    assert clients in master.get(*where)
    assert clients not in worker.get(*where)
    assert deployment.resource("loadtest", "WorkerTask").get("TaskRoleArn") is None
    assert deployment.container("load").variables == {}


def test_without_a_secret_nothing_reaches_the_database():
    """HTTP alone is measured, with no variable, no permission and no route to a database."""
    deployment = deployment_with(DatabaseSecretArn="")
    assert set(deployment.container("master").variables) == {"AWS_REGION"}
    service = deployment.resource("loadtest", "MasterService")
    assert len(service.get("NetworkConfiguration", "AwsvpcConfiguration", "SecurityGroups")) == 2
    (policy,) = deployment.resource("loadtest", "MasterRole").get("Policies")
    actions = [str(each["Action"]) for each in policy["PolicyDocument"]["Statement"]]
    assert not [each for each in actions if "secretsmanager" in each]


def test_reports_come_from_the_workers_alone(deployment):
    """Every other client is refused: it could order a worker to load any host."""
    (rule,) = reports(deployment)
    assert rule.get("GroupId") == Reference("loadtest", "MasterSecurityGroup")
    assert rule.get("SourceSecurityGroupId") == Reference("loadtest", "WorkerSecurityGroup")
    for group in deployment.of_type("AWS::EC2::SecurityGroup"):
        if group.stack.name == "loadtest":
            assert group.get("SecurityGroupIngress") is None


def test_load_goes_to_the_target_alone():
    """A worker's own group opens the target's port and the master's."""
    deployment = deployment_with(TargetPort="8443", TargetCidr="10.40.0.0/16")
    rules = deployment.resource("loadtest", "WorkerSecurityGroup").get("SecurityGroupEgress")
    assert [(rule["FromPort"], rule.get("CidrIp")) for rule in rules] == [
        ("8443", "10.40.0.0/16"),
        (5557, None),
    ]


def test_public_addresses_are_asked_for():
    """Workers get them by parameter, the master never."""
    for subnets, address in (("private", "DISABLED"), ("public", "ENABLED")):
        deployment = deployment_with(WorkerSubnets=subnets)
        place = ("NetworkConfiguration", "AwsvpcConfiguration", "AssignPublicIp")
        assert deployment.resource("loadtest", "WorkerService").get(*place) == address
        assert deployment.resource("loadtest", "MasterService").get(*place) == "DISABLED"


def test_results_are_encrypted_private_and_outlive_the_stack(deployment):
    """The bucket stays with its policy; what is in it ends by itself."""
    bucket = deployment.resource("loadtest", "Results")
    assert bucket.definition["DeletionPolicy"] == "Retain"
    assert deployment.resource("loadtest", "ResultsPolicy").definition["DeletionPolicy"] == "Retain"
    assert set(bucket.get("PublicAccessBlockConfiguration").values()) == {True}
    assert bucket.get("BucketEncryption", "ServerSideEncryptionConfiguration", 0)
    (rule,) = bucket.get("LifecycleConfiguration", "Rules")
    assert rule["ExpirationInDays"]


def test_a_bucket_of_ones_own_is_used():
    """No other is made, and the master may write to its prefix there alone."""
    deployment = deployment_with(ResultsBucket="mine")
    assert "Results" not in deployment.stacks["loadtest"].resources
    (policy,) = deployment.resource("loadtest", "MasterRole").get("Policies")
    put, listed, *_ = policy["PolicyDocument"]["Statement"]
    named = "".join(part for part in put["Resource"].parts if isinstance(part, str))
    assert named.endswith(":s3:::mine/first/*")
    assert listed["Condition"] == {"StringLike": {"s3:prefix": "first/*"}}


def test_a_master_that_is_stopped_has_time_to_report(deployment):
    """Half of its time is Locust's, half is for the upload."""
    assert deployment.container("master").definition["StopTimeout"] >= 2 * GRACE_S


def test_the_master_is_removed_before_its_workers(deployment):
    """So that they are there to report when it ends the run."""
    master = deployment.resource("loadtest", "MasterService")
    assert "WorkerService" in master.definition["DependsOn"]


# -- compose --------------------------------------------------------------------------------


def compose_file():
    return yaml.safe_load((INFRA / "loadtest" / "compose.yaml").read_text())


def test_compose_opens_no_port_to_the_network():
    """The page and the workers' port are on the loopback address, if nothing else is said."""
    ports = compose_file()["services"]["master"]["ports"]
    assert ports == ["127.0.0.1:8089:8089", "${MASTER_BIND:-127.0.0.1}:5557:5557"]
    assert "ports" not in compose_file()["services"]["worker"]


def test_compose_agrees_to_nothing_by_itself():
    """The person who starts it adds --yes-load-this-host, as on any command line."""
    for service in compose_file()["services"].values():
        assert "--yes-load-this-host" not in service["command"]


def test_compose_joins_the_services_beside_it():
    """The network, the host and the database are those of infra/compose.yaml."""
    beside = yaml.safe_load((INFRA / "compose.yaml").read_text())
    network = compose_file()["networks"]["default"]
    assert network == {"name": f"${{LOAD_NETWORK:-{beside['name']}_default}}", "external": True}
    assert "http://web:8000" in compose_file()["services"]["master"]["command"]
    environ = compose_file()["services"]["worker"]["environment"]
    assert (
        environ["WORKER_BROKER_URL"]
        == (beside["services"]["worker"]["environment"]["WORKER_BROKER_URL"])
    )
    assert {"web", "postgres", "valkey"} <= set(beside["services"])


def test_composes_containers_can_write_nowhere_but_tmp():
    """They have no capabilities, and their file system is read-only."""
    for service in compose_file()["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_load_fits_the_database_beside_it():
    """One connection of the master and of each worker, on top of the services'."""
    both = (INFRA / "compose.yaml", INFRA / "loadtest" / "compose.yaml")
    budget = compute_budget(Options(paths=both)).only
    assert budget.verdict == "fits"
    ours = {each.name: each.ceiling for each in budget.services if each.target == "script"}
    assert sorted(ours.values()) == [1, 2]  # the master's, and two workers'
