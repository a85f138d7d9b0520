"""Wrong input gives one clear line, with file and line, and exit status 2."""

import pytest

from poolkit.errors import BudgetError

HEAD = "AWSTemplateFormatVersion: '2010-09-09'\n"
DATABASE = "  Db:\n    Type: AWS::RDS::DBInstance\n    Properties: {DBInstanceClass: %s}\n"
FUNCTION = """  Fn:
    Type: AWS::Lambda::Function
    Properties:
      ReservedConcurrentExecutions: %s
      Environment: {Variables: {POOLKIT_TARGET: %s, DATABASE_URL: x}}
"""

CASES = {
    "broken YAML": (HEAD + "Resources:\n  A: [1, 2\n  B: }\n", "app.yaml:4: not valid YAML"),
    "a repeated key": (
        HEAD + "Resources: {}\nResources: {}\n",
        "app.yaml:3: the key Resources appears twice",
    ),
    "an unknown function": (
        HEAD + "Resources:\n" + FUNCTION % ("!Frobnicate 3", "lambda"),
        "app.yaml:6: unknown intrinsic function Fn::Frobnicate",
    ),
    "a circular condition": (
        HEAD
        + "Conditions:\n  A: !Not [!Condition B]\n  B: !Not [!Condition A]\nResources:\n  Fn:\n"
        + "    Type: AWS::Lambda::Function\n    Condition: A\n",
        "condition A refers to itself",
    ),
    "an unknown reference": (
        HEAD + "Resources:\n" + FUNCTION % ("!Ref Missing", "lambda"),
        "app.yaml:6: 'Missing' is neither a parameter nor a resource",
    ),
    "a negative number": (
        HEAD + "Resources:\n" + FUNCTION % ("-1", "lambda"),
        "app.yaml:6: ReservedConcurrentExecutions must not be negative, not -1",
    ),
    "a word for a number": (
        HEAD + "Resources:\n" + FUNCTION % ("many", "lambda"),
        "app.yaml:6: ReservedConcurrentExecutions must be a whole number, not 'many'",
    ),
    "an unknown preset": (
        HEAD + "Resources:\n" + FUNCTION % ("1", "lamda"),
        "Fn: POOLKIT_TARGET: target 'lamda' is unknown (did you mean 'lambda'?)",
    ),
    "an unknown instance class": (
        HEAD + "Resources:\n" + DATABASE % "db.q9.huge",
        "app.yaml:5: instance class 'db.q9.huge' is unknown",
    ),
    "no database": (
        HEAD + "Resources:\n" + FUNCTION % ("1", "lambda"),
        "there is no database in the templates",
    ),
    "an alias inside what it names": (
        HEAD + "Resources: &a\n  B: *a\n",
        "names a value that contains it",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_template_is_one_line(folder, name):
    """The message names file and line, and there is no traceback."""
    text, message = CASES[name]
    folder.write("app.yaml", text)
    answer = folder.run("app.yaml")
    assert answer.returncode == 2, answer.stdout
    assert message in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_a_folder_without_templates_is_refused(folder):
    """Other YAML files are no templates. The message says which files are read."""
    folder.write("notes.yaml", "some: thing\n")
    answer = folder.run(".")
    assert answer.returncode == 2
    assert "no CloudFormation or SAM template, Kubernetes manifest or compose file" in answer.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"services": ("Fn=5-1",)}, "must be NAME=POOL"),
        ({"services": ("Fn=0+0",)}, "at least 1 connection"),
        ({"services": ("Missing=1+1",)}, "there is no service 'Missing'"),
        ({"parameters": ("Missing=1",)}, "no template has a parameter Missing"),
        ({"parameters": ("missing.json",)}, "neither Key=Value nor an existing JSON file"),
        ({"max_connections": 0}, "--max-connections must not be 0"),
        ({"operators": -1}, "--operators must not be -1"),
        ({"environment": "moon"}, "environment moon: there is no"),
        ({"database": "Other", "max_connections": None}, "there is no such database"),
        ({"instance_class": "db.m7g.large"}, "give one of them"),
    ],
)
def test_a_wrong_option_is_refused(folder, options, message):
    """The message says which name is unknown, or which number is impossible."""
    folder.write("app.yaml", HEAD + "Resources:\n" + FUNCTION % ("1", "lambda"))
    with pytest.raises(BudgetError, match=message.replace("(", r"\(")):
        folder.budget(**{"max_connections": 100, **options})


def test_references_in_a_circle_between_stacks(folder):
    """Two stacks that each need an output of the other cannot be deployed."""
    template = HEAD + "Parameters: {P: {Type: String}}\nResources:\n"
    for name in "ab":
        text = template + FUNCTION.replace("Fn", f"F{name}") % ("!Ref P", "lambda")
        folder.write(f"{name}.yaml", text + "Outputs: {O: {Value: !Ref P}}\n")
    folder.write("environments/prod.toml", '[a]\nP = "{b.O}"\n[b]\nP = "{a.O}"\n')
    with pytest.raises(BudgetError, match="refers to itself"):
        folder.budget(environment="prod", max_connections=10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[app]\nCapacity = 3\n",
            "prod.toml:2: .*app.yaml has no parameter Capacity; did you mean",
        ),
        ("[app\n", "prod.toml:1: not valid TOML"),
        ("[missing]\n", r"no template belongs to the table \[missing\]"),
        ('[app]\nCapacities = "{missing.Id}"\n', "prod.toml:2: .*there is no template missing"),
    ],
)
def test_a_wrong_environment_file_names_its_line(folder, text, message):
    """A misspelt parameter is found too."""
    head = HEAD + "Parameters: {Capacities: {Type: Number}}\nResources:\n"
    folder.write("app.yaml", head + FUNCTION % ("!Ref Capacities", "lambda"))
    folder.write("environments/prod.toml", text)
    with pytest.raises(BudgetError, match=message):
        folder.budget(environment="prod", max_connections=10)


def test_two_databases_ask_for_a_name(folder):
    """One of several databases must be named; clients of the others are left out."""
    other = DATABASE.replace("Db", "Other") % "db.m7g.large"
    text = FUNCTION.replace("DATABASE_URL: x", "DATABASE_HOST: !GetAtt Other.Endpoint.Address")
    resources = DATABASE % "db.m7g.large" + other + text % ("5", "lambda")
    folder.write("app.yaml", HEAD + "Resources:\n" + resources)
    with pytest.raises(BudgetError, match="several databases"):
        folder.budget()
    assert folder.budget(database="Other").needed == 9
    assert folder.budget(database="Db").needed == 4
