"""The kit's templates as each environment deploys them, and the containers and functions in them."""

import functools
from dataclasses import dataclass

from processes import ROOT

from poolkit.budget.cloudformation.templates import make_stacks
from poolkit.budget.command import compute_budget
from poolkit.budget.files import read_files
from poolkit.budget.model import Options
from poolkit.budget.read.parameters import find_environment
from poolkit.config.settings import Settings
from poolkit.config.statement_deadline import statement_deadline

INFRA = ROOT / "infra"
ENVIRONMENTS = ("dev", "staging", "prod", "high_traffic")

AURORA = {"database": {"Kind": "aurora-serverless"}}
TOKENS = {
    "DatabaseAuthentication": "iam",
    "DatabaseUser": "articles_app",
    "DatabaseResourceId": "{database.ResourceId}",
}
VARIANTS = {
    "aurora": ("high_traffic", AURORA),
    "iam": ("prod", dict.fromkeys(("lambda", "web", "worker"), TOKENS)),
}
"""What the templates offer and no environment of this project chooses."""

# What stands for a value that only a deployment knows.
PLACEHOLDERS = {"DATABASE_SECRET_ARN": "arn:aws:secretsmanager:eu-central-1:0:secret:s"}


def worker_settings(variables):
    """Read the variables of the sample's worker as it reads them itself."""
    from worker.settings import WorkerSettings

    return WorkerSettings.from_environ(variables)


@dataclass(frozen=True)
class Deployable:
    """One container or function: its template, its variables, and what surrounds them."""

    template: str
    name: str
    variables: dict
    definition: dict

    @property
    def settings(self):
        """What the deployable itself reads from its variables."""
        return Settings.from_environ(self.text())

    def text(self):
        """Give the variables as text, with a placeholder for what is not known yet."""
        return {
            name: value if isinstance(value, str | int) else PLACEHOLDERS.get(name, "later")
            for name, value in self.variables.items()
        } | {name: str(value) for name, value in self.variables.items() if isinstance(value, int)}


class Deployment:
    """The stacks of one environment."""

    def __init__(self, environment, given):
        self.environment = environment
        chosen = find_environment(environment, [INFRA]).overridden(given)
        self.tables = chosen.tables
        templates = read_files([INFRA]).templates
        deployed = [each for each in templates if each.path.stem in chosen.tables]
        self.stacks = make_stacks(deployed, chosen, {}).by_name

    @functools.cached_property
    def budget(self):
        """The connection budget of the environment."""
        return compute_budget(Options(paths=(INFRA,), environment=self.environment)).only

    def of_type(self, *types):
        return [each for stack in self.stacks.values() for each in stack.of_type(*types)]

    def resource(self, template, name):
        return self.stacks[template].resources[name]

    def containers(self):
        return [
            Deployable(
                task.stack.name,
                container["Name"],
                {each["Name"]: each["Value"] for each in container.get("Environment", [])},
                container,
            )
            for task in self.of_type("AWS::ECS::TaskDefinition")
            for container in task.get("ContainerDefinitions")
        ]

    def all_functions(self):
        return [
            Deployable(
                one.stack.name, one.logical_id, one.get("Environment", "Variables"), one.properties
            )
            for one in self.of_type("AWS::Lambda::Function")
        ]

    def functions(self):
        """Give the functions that connect to the database."""
        return [each for each in self.all_functions() if "POOLKIT_TARGET" in each.variables]

    def deployables(self):
        return self.containers() + self.all_functions()

    def container(self, name):
        return next(each for each in self.containers() if each.name == name)


@functools.cache
def deployment_of(name):
    """Return the stacks of an environment or a variant, read once: expanding SAM takes a while."""
    return Deployment(*VARIANTS.get(name, (name, {})))


def answer_of(chosen):
    """Return the seconds of a web preset's slowest answer with one statement on a new connection."""
    return chosen.pool_timeout + chosen.connect_timeout + statement_deadline(chosen)
