"""Whatever CloudFormation and SAM accept is read, or reported as not read; nothing ends the run."""

import json
import re

import pytest
from cloudformation_texts import DATABASE, ecs, function, stack

SAM = "Transform: AWS::Serverless-2016-10-31\n"


def reasons(budget):
    """Return the reasons of all parts that were not read, and of all unknown numbers."""
    return [each.reason for each in (*budget.unread, *budget.gaps)]


# -- SAM ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "properties",
    [
        "PackageType: Image",
        "Runtime: python3.13",
        "Runtime: python3.13, CodeUri: {Bucket: b}, Events: {Odd: {Type: Unheard}}",
        "InlineCode: x, CodeUri: y, Architectures: arm64, Policies: [{Odd: {}}]",
    ],
)
def test_a_function_that_sam_completes_or_refuses_is_counted(folder, ceilings, properties):
    """`sam build` fills in the code, and no other property changes the number."""
    text = f"""
  Fn:
    Type: AWS::Serverless::Function
    Properties:
      {{ReservedConcurrentExecutions: 20, {properties},
        Environment: {{Variables: {{H: !GetAtt Db.Endpoint.Address}}}}}}
"""
    folder.write("app.yaml", SAM + stack(DATABASE, text))
    assert ceilings(folder.budget(services=("Fn=1+0",))) == {"Fn": 40}
    assert folder.budget().unread == ()


def test_globals_are_merged_into_each_function(folder, ceilings):
    """A function's own values win; maps are merged, and IgnoreGlobals leaves some out."""
    globals_ = """Globals:
  Function:
    ReservedConcurrentExecutions: 10
    Environment: {Variables: {POOLKIT_TARGET: lambda, POOLKIT_ENVIRONMENT: prod}}
"""
    one = "  %s:\n    Type: AWS::Serverless::Function\n    %s\n"
    functions = [
        one % ("Shared", "Properties: {Environment: {Variables: {DATABASE_HOST: x}}}"),
        one % ("Own", "Properties: {ReservedConcurrentExecutions: 3}"),
        one % ("Alone", "IgnoreGlobals: [ReservedConcurrentExecutions]"),
    ]
    file = folder.write("app.yaml", SAM + globals_ + stack(DATABASE, *functions))
    budget = folder.budget()
    assert ceilings(budget) == {"Shared": 10, "Own": 3, "Alone": None}
    # The line of a value is the one in Globals.
    assert budget.services[0].instances.origin == f"{file}:4"


@pytest.mark.parametrize(
    "location",
    ["{ApplicationId: arn:aws:serverlessrepo:us-east-1:1:applications/x}", "https://e.org/a.yaml"],
)
def test_a_published_application_is_reported_without_a_request(folder, monkeypatch, location):
    """A reader never uses the network, even with credentials for it."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("socket.socket.connect", None)
    text = f"  App: {{Type: AWS::Serverless::Application, Properties: {{Location: {location}}}}}\n"
    folder.write("app.yaml", SAM + stack(DATABASE, text))
    budget = folder.budget()
    (unread,) = budget.unread
    assert ("App" in unread.reason, budget.verdict) == (True, "cannot be shown to fit")


def test_a_reference_to_what_sam_makes_is_no_gap(folder):
    """SAM makes roles, versions and an API beside the resources that are written."""
    text = """
  Api: {Type: AWS::Serverless::Function}
  Thing:
    Type: AWS::SNS::Topic
    Properties: {A: !GetAtt ApiRole.Arn, B: !Ref ServerlessRestApi, C: !Ref Api.Version}
"""
    folder.write("app.yaml", SAM + stack(DATABASE, text))
    assert folder.budget().unread == ()


# -- parts that only AWS can expand ---------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ("Transform: [Company::Macro]\n", ""),
        ("Transform: {Name: AWS::Include, Parameters: {Location: s3://b/k}}\n", ""),
        ("Modules: {Shop: {Source: ./shop.yaml}}\n", ""),
        ("", "  Fn::Transform: {Name: AWS::Include, Parameters: {Location: s3://b/k}}\n"),
        ("", "  Shop: {Fn::Transform: {Name: Company::Macro}}\n"),
        ("", "  Shop: {Type: Company::Shop::Service::MODULE}\n"),
        ("", "  Shop: {Type: AWS::CloudFormation::StackSet, Properties: {StackSetName: s}}\n"),
        (
            "Transform: AWS::LanguageExtensions\n",
            "  Fn::ForEach::Shops: [Name, !Ref Names, {'Shop${Name}': {Type: AWS::SNS::Topic}}]\n",
        ),
    ],
)
def test_a_part_that_only_aws_can_expand_is_reported(folder, head, text):
    """It may hold services, so the budget cannot be shown to fit."""
    folder.write("app.yaml", head + stack(DATABASE, function(target="lambda"), text))
    budget = folder.budget(services=("Fn=1+0@1",))
    assert (len(budget.unread), budget.verdict) == (1, "cannot be shown to fit")


def test_transforms_that_add_no_service_are_accepted(folder):
    """Language extensions change values, and are evaluated or unknown one by one."""
    head = "Transform: [AWS::LanguageExtensions, 'AWS::SecretsManager-2020-07-23']\n"
    folder.write("app.yaml", head + stack(DATABASE, function(target="lambda")))
    assert folder.budget(services=("Fn=1+0@1",)).verdict == "fits"


# -- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        "!Frobnicate 3",
        "!FindInMap [Sizes, !Ref AWS::Region, Concurrency]",
        "!FindInMap [Missing, a, b]",
        "!Select [7, [1, 2]]",
        "!Select [x, [1, 2]]",
        "!Sub {Rain::Embed: file.sh}",
        "!Join [a]",
        "!If [Missing, 1, 2]",
        "!If 3",
        "!GetAtt 3",
        "!Split [1]",
        "!ImportValue [1]",
        "'{{resolve:ssm:/shop/concurrency:1}}'",
        "!Ref Missing",
        "!GetAtt Missing.Arn",
        "{Fn::Transform: {Name: Company::Macro}}",
        "{Fn::Length: 5}",
    ],
)
def test_a_value_that_cannot_be_evaluated_is_unknown(folder, number):
    """The number has a reason, and no Python value in it."""
    text = function(extra=f"ReservedConcurrentExecutions: {number}")
    folder.write("app.yaml", stack(DATABASE, text) + "\nMappings: {Sizes: {x: {Concurrency: 1}}}\n")
    budget = folder.budget()
    assert budget.services[0].instances.value is None
    assert budget.verdict == "cannot be shown to fit"
    assert not re.search(r"\w+\((reason|stack|parts|value)=|<class|\{'", " ".join(reasons(budget)))


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("!FindInMap [Sizes, missing, Concurrency, {DefaultValue: 5}]", 5),
        ("!FindInMap [Sizes, x, Concurrency]", 1),
        ("!Select ['1', !Split [',', '3,4']]", 4),
        ("{Fn::Length: [a, b, c]}", 3),
        ("!If ['', 6, 7]", 6),
        ("!Join ['', [1, 2]]", 12),
        ("!Sub ['${A}${B}', {A: 1, B: 3}]", 13),
    ],
)
def test_a_value_is_evaluated_where_aws_is_not_needed(folder, number, value):
    """The functions give the numbers that CloudFormation would give."""
    text = function(extra=f"ReservedConcurrentExecutions: {number}")
    folder.write("app.yaml", stack(DATABASE, text) + "\nMappings: {Sizes: {x: {Concurrency: 1}}}\n")
    assert folder.budget().services[0].instances.value == value


def test_a_missing_resource_is_named_with_its_line(folder):
    """CloudFormation would refuse it, and the rest of the template is still counted."""
    text = function(extra="Description: !Ref Missing\n      ReservedConcurrentExecutions: 1")
    file = folder.write("app.yaml", stack(DATABASE, text))
    line = next(n for n, each in enumerate(file.read_text().splitlines(), 1) if "Missing" in each)
    (unread,) = folder.budget().unread
    assert ("Missing" in unread.reason, str(unread.where)) == (True, f"{file}:{line}")


@pytest.mark.parametrize("attribute", ["Condition: ''", "Condition:", "DeletionPolicy: !Ref P"])
def test_attributes_that_change_no_number_are_accepted(folder, attribute):
    """An empty condition always holds, as in CloudFormation."""
    text = DATABASE.replace("    Properties", f"    {attribute}\n    Properties")
    folder.write("app.yaml", stack(text, function(target="lambda"), parameters="  P: {Type: S}\n"))
    assert folder.budget(services=("Fn=1+0@1",)).verdict == "fits"


def test_conditions_that_refer_to_each_other_too_deeply_are_unknown(folder):
    """The run does not end in Python's limit of recursion."""
    conditions = {"C0": {"Fn::Equals": ["a", "a"]}}
    conditions |= {f"C{n}": {"Fn::Not": [{"Condition": f"C{n - 1}"}]} for n in range(1, 500)}
    resource = {"Type": "AWS::Lambda::Function", "Condition": "C499"}
    template = {"Conditions": dict(reversed(conditions.items())), "Resources": {"Fn": resource}}
    folder.write("app.json", json.dumps(template))
    budget = folder.budget(max_connections=100, services=("Fn=1+0",))
    assert budget.services[0].instances.value is None


# -- nested stacks --------------------------------------------------------------------------

PARENT = """
  %s:
    Type: AWS::CloudFormation::Stack
    %s
    Properties: {TemplateURL: %s, Parameters: {Host: %s}}
"""
INNER = function(extra="ReservedConcurrentExecutions: 5", target="lambda")
INNER = INNER.replace("!GetAtt Db.Endpoint.Address", "!Ref Host")


@pytest.mark.parametrize(
    ("more", "url"),
    [
        ("", "nested/app.yaml"),
        ("", "https://s3.amazonaws.com/bucket/v1/nested/app.yaml"),
        ("", "!Sub 'https://${Bucket}.s3.${AWS::Region}.${AWS::URLSuffix}/nested/app.yaml'"),
        ("", "!Join ['/', [https://s3.amazonaws.com, !Ref Bucket, nested/app.yaml]]"),
        ("", "!Sub '${Url}nested/${Name}.yaml'"),
        ("Metadata: {'aws:asset:path': nested/app.yaml}", "!Sub 'https://s3/${Bucket}/0f.json'"),
    ],
)
def test_a_nested_template_is_found_by_the_end_of_its_url(folder, ceilings, more, url):
    """Templates are deployed from S3, and stand in one folder before."""
    parameters = (
        "  Bucket: {Type: String}\n  Url: {Type: String}\n  Name: {Type: String, Default: app}\n"
    )
    host = "!GetAtt Db.Endpoint.Address"
    parent = stack(DATABASE, PARENT % ("App", more, url, host), parameters=parameters)
    folder.write("parent.yaml", parent)
    folder.write("nested/app.yaml", stack(INNER, parameters="  Host: {Type: String}\n"))
    for paths in ((), ("parent.yaml",)):
        budget = folder.budget(*paths)
        assert (ceilings(budget), budget.unread) == ({"Fn": 5}, ())


def test_a_nested_template_may_stand_in_a_folder_beside_the_parents(folder, ceilings):
    """The end of the URL has the folder, which is looked for above the parent too."""
    url = "https://s3.amazonaws.com/bucket/latest/templates/app.yaml"
    host = "!GetAtt Db.Endpoint.Address"
    folder.write("samples/parent.yaml", stack(DATABASE, PARENT % ("App", "", url, host)))
    folder.write("templates/app.yaml", stack(INNER, parameters="  Host: {Type: String}\n"))
    budget = folder.budget()
    assert (ceilings(budget), budget.unread) == ({"Fn": 5}, ())


@pytest.mark.parametrize("order", [1, -1])
def test_a_parameter_may_be_the_output_of_a_stack_that_comes_later(folder, order):
    """The order of the resources decides nothing."""
    stacks = [
        PARENT % ("App", "", "app.yaml", "!GetAtt Store.Outputs.Host"),
        "  Store: {Type: AWS::CloudFormation::Stack, Properties: {TemplateURL: store.yaml}}\n",
    ]
    folder.write("parent.yaml", stack(*stacks[::order]))
    # No variable has a name about a database: only the reference shows the client.
    inner = INNER.replace("POOLKIT_TARGET: lambda", "A: b").replace("DATABASE_HOST", "WHERE")
    inner = inner.replace("POOLKIT_ENVIRONMENT: prod", "C: d")
    folder.write("app.yaml", stack(inner, parameters="  Host: {Type: String}\n"))
    outputs = "\nOutputs: {Host: {Value: !GetAtt Db.Endpoint.Address}}\n"
    folder.write("store.yaml", stack(DATABASE) + outputs)
    assert [each.name for each in folder.budget().services] == ["Fn"]


@pytest.mark.parametrize("text", ["Resources: [1\n", "", "- a\n"])
def test_a_nested_template_that_cannot_be_read_is_reported(folder, text):
    """The parent is still counted."""
    folder.write("nested/app.yaml", text)
    url = PARENT % ("App", "", "nested/app.yaml", "x")
    folder.write("parent.yaml", stack(DATABASE, url))
    (unread,) = folder.budget("parent.yaml").unread
    assert "App" in unread.reason


def test_a_template_that_names_itself_is_reported(folder):
    """Two templates of one name may be meant, so it is no error."""
    url = PARENT % ("App", "", "https://s3.amazonaws.com/elsewhere/parent.yaml", "x")
    folder.write("parent.yaml", stack(DATABASE, url))
    assert len(folder.budget().unread) == 1


def test_a_template_far_below_the_root_is_no_nested_stack(folder):
    """A second template of one name is called by its path, whose folders are no levels."""
    deep = "/".join("abcdefghij")
    folder.write("app.yaml", stack(DATABASE))
    folder.write(f"{deep}/app.yaml", stack(ecs().replace("!GetAtt Db.Endpoint.Address", "x")))
    assert [each.name for each in folder.budget().services] == ["Web"]


def test_json_of_the_cdk_is_read_with_its_usual_secret(folder):
    """An attachment, a dynamic reference in the database, and a role in the task."""
    secret = {
        "Fn::Join": ["", ["{{resolve:secretsmanager:", {"Ref": "Secret"}, ":SecretString:x}}"]]
    }
    statement = {"Effect": "Allow", "Action": ["secretsmanager:GetSecretValue"]}
    statement["Resource"] = {"Ref": "Secret"}
    resources = {
        "Secret": {"Type": "AWS::SecretsManager::Secret"},
        "Db": {
            "Type": "AWS::RDS::DBInstance",
            "Properties": {
                "Engine": "postgres",
                "DBInstanceClass": "db.m7g.large",
                "MasterUserPassword": secret,
            },
        },
        "Role": {"Type": "AWS::IAM::Role"},
        "RoleDefaultPolicy": {
            "Type": "AWS::IAM::Policy",
            "Properties": {
                "PolicyDocument": {"Statement": [statement]},
                "Roles": [{"Ref": "Role"}],
            },
        },
        "Fn": {
            "Type": "AWS::Lambda::Function",
            "Properties": {"Role": {"Fn::GetAtt": ["Role", "Arn"]}},
        },
    }
    folder.write("Shop.template.json", json.dumps({"Resources": resources}))
    assert [each.name for each in folder.budget().services] == ["Fn"]
