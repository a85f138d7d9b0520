"""Files and folders: what a walk reads, what it passes, and what it lists."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
from poolkit_command import refused

from poolkit.budget.read.documents import parse_documents, read_documents
from poolkit.errors import TemplateError

FUNCTION = """\
AWSTemplateFormatVersion: "2010-09-09"
Resources:
  Fn:
    Type: AWS::Lambda::Function
    Properties:
      ReservedConcurrentExecutions: 5
      Environment: {Variables: {POOLKIT_TARGET: lambda, DATABASE_URL: x}}
"""
HEAD, RESOURCES = FUNCTION.partition("  Fn:")[0], FUNCTION.partition("Resources:\n")[2]
UPDATE = ".serverless/cloudformation-template-update-stack.json"


def template(name="Fn", number=5):
    """Return a template in JSON with one function."""
    return FUNCTION_JSON.replace("Fn", name).replace("5", str(number))


FUNCTION_JSON = json.dumps(
    {
        "Resources": {
            "Fn": {
                "Type": "AWS::Lambda::Function",
                "Properties": {
                    "ReservedConcurrentExecutions": 5,
                    "Environment": {"Variables": {"POOLKIT_TARGET": "lambda", "DATABASE_URL": "x"}},
                },
            }
        }
    }
)


@pytest.fixture
def counted(folder):
    """A function that returns the names of the services of a folder, and checks its verdict."""

    def count(verdict="fits", **options):
        budget = folder.budget(max_connections=100, **options)
        assert budget.verdict == verdict
        return [service.name for service in budget.services]

    return count


def listed(budget):
    """Return the names of the files that are listed as not read, and the reasons."""
    found = [each for each in budget.not_counted if each.platform == "file"]
    return {Path(each.name).name: each.reason for each in found}


# -- what is passed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.json", '{"id": 1}\n{"id": 2}\n'),
        ("broken.json", '{"id": 1}}'),
        ("Dockerfile.template", "FROM python\nRUN pip install {{ extra }}\n"),
        ("page.yaml", "{% if x %}\nname: {{ x }}\n{% endif %}\n"),
        ("latin.yaml", "name: K\xf6ln\n".encode("latin-1")),
        ("utf16.yaml", "name: x\n".encode("utf-16-le") + b"\xff\xd8"),
        ("binary.yaml", bytes(range(256))),
        ("deployment.yaml.tmpl", "apiVersion: v1\nkind: {{ .Kind }}\n"),
        ("deployment.yaml.j2", "apiVersion: v1\nkind: {{ kind }}\n"),
        ("gone.yaml", Path("nowhere.yaml")),
    ],
)
def test_a_file_that_is_no_deployment_is_listed(folder, counted, name, content):
    """Nothing of it is counted, and it does not change the verdict."""
    folder.write("app.yaml", FUNCTION)
    file = folder.path / name
    if isinstance(content, Path):
        file.symlink_to(content)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert counted() == ["Fn"]
    assert set(listed(folder.budget(max_connections=100))) == {name}


@pytest.mark.parametrize(
    "name",
    ["node_modules", "vendor", ".venv", "venv", "dist", "build", "target", ".terraform", "tests"],
)
def test_a_folder_of_packages_or_tests_is_passed(folder, counted, name):
    """It is listed, and read if it is named."""
    folder.write("app.yaml", FUNCTION)
    folder.write(f"{name}/app.yaml", FUNCTION.replace("Fn", "Other"))
    assert counted() == ["Fn"]
    assert name in "".join(listed(folder.budget(max_connections=100)))
    assert [each.name for each in folder.budget(name, max_connections=100).services] == ["Other"]


def test_many_files_of_a_kind_are_one_line(folder, counted):
    """The line has their number."""
    folder.write("app.yaml", FUNCTION)
    for number in range(20):
        folder.write(f"data/{number:02}.json", "{} {")
    assert counted() == ["Fn"]
    (name,) = listed(folder.budget(max_connections=100))
    assert "18 more" in name


def test_links_in_a_circle_end(folder, counted):
    """No link to a folder is followed; each is listed."""
    folder.write("inner/app.yaml", FUNCTION)
    (folder.path / "inner/again").symlink_to(folder.path)
    (folder.path / "itself").symlink_to(folder.path / "itself")
    (folder.path / "same.yaml").symlink_to(folder.path / "inner/app.yaml")
    (folder.path / "away").symlink_to("/etc")
    assert counted() == ["Fn"]
    assert set(listed(folder.budget(max_connections=100))) == {"again", "away"}


def test_a_pipe_or_socket_is_not_opened(folder, counted, monkeypatch):
    """Opening a pipe would wait for ever."""
    folder.write("app.yaml", FUNCTION)
    os.mkfifo(folder.path / "pipe.yaml")
    monkeypatch.chdir(folder.path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.json")
        assert counted() == ["Fn"]
    assert set(listed(folder.budget(max_connections=100))) == {"pipe.yaml", "socket.json"}


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("compose.yaml", "services:\n  web:\n    image: a\n   build: b\n", 4),
        ("app.yaml", "<<<<<<< HEAD\n" + FUNCTION + "=======\n>>>>>>> other\n", 2),
        ("k8s.yaml", "apiVersion: v1\nkind: Pod\n\tmetadata: {}\n", 3),
        ("app.json", '{"Resources": {\n"Fn": {"Type": "AWS::Lambda::Function"\n', 3),
        ("kustomization.yaml", "resources:\n- a.yaml\n - b: {\n", 3),
        ("plan.json", '{"format_version": "1.2",\n"planned_values": {{\n', 3),
    ],
)
def test_a_broken_deployment_has_its_line(folder, counted, name, text, line):
    """A merge conflict or a wrong indent makes the verdict unknown, but stops nothing."""
    folder.write("other.yaml", FUNCTION)
    folder.write(name, "")
    (folder.path / name).write_text(text)
    assert counted("cannot be shown to fit") == ["Fn"]
    (unread,) = folder.budget(max_connections=100).unread
    assert (Path(unread.where.file).name, unread.where.line) == (name, line)
    refused(folder.run(name), f"{name}:{line}: not valid YAML", lines=1)


def test_the_default_folder_is_walked_as_well(folder, monkeypatch):
    """Without a path, the current folder's broken files are passed too."""
    folder.write("app.yaml", FUNCTION)
    folder.write("other.yaml", HEAD + "  A: {Type: 'AWS::X::Y', Condition: [\n")
    finished = folder.run("--max-connections", "100")
    assert finished.returncode == 3
    assert "other.yaml" in finished.stdout


# -- output of other programs ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["serverless.yml", "serverless.ts", "serverless.yaml"])
def test_the_serverless_framework_is_read_from_its_package(folder, counted, name):
    """Its own file is not expanded here; without the package, the command is named."""
    folder.write(name, "service: shop\n")
    (unread,) = folder.budget(max_connections=100).unread
    assert (Path(unread.where.file).name, unread.where.line) == (name, 1)
    assert "serverless package" in unread.reason
    folder.write(UPDATE, template())
    folder.write(".serverless/serverless-state.json", template("Other"))
    assert counted() == ["Fn"]


def test_the_cdk_is_read_from_its_output(folder, counted):
    """Only the stacks of the manifest count; without an output, the command is named."""
    folder.write("cdk.json", '{"app": "python app.py"}')
    (unread,) = folder.budget(max_connections=100).unread
    assert "cdk synth" in unread.reason
    stack = {"type": "aws:cloudformation:stack", "properties": {"templateFile": "A.template.json"}}
    stage = {"type": "cdk:cloud-assembly", "properties": {"directoryName": "assembly-Prod"}}
    folder.write("cdk.out/manifest.json", json.dumps({"artifacts": {"A": stack, "P": stage}}))
    folder.write("cdk.out/A.template.json", template("A"))
    folder.write("cdk.out/Removed.template.json", template("Removed"))
    folder.write("cdk.out/asset.1/template.json", template("Asset"))
    inner = {**stack, "properties": {"templateFile": "B.template.json"}}
    folder.write("cdk.out/assembly-Prod/manifest.json", json.dumps({"artifacts": {"B": inner}}))
    folder.write("cdk.out/assembly-Prod/B.template.json", template("B"))
    assert sorted(counted()) == ["A", "B"]
    named = folder.budget("cdk.out", max_connections=100)
    assert sorted(each.name for each in named.services) == ["A", "B"]


def test_a_copy_of_an_output_counts_once(folder, counted):
    """The same template in two folders of one's own is deployed twice."""
    folder.write("cdk.out/A.template.json", template())
    folder.write("templates/A.template.json", template())
    assert counted() == ["Fn"]
    folder.write("other/A.template.json", template())
    assert len(counted()) == 2


def test_the_output_of_sam_build_counts_once(folder, counted):
    """It is the same application as the template beside it."""
    folder.write("template.yaml", FUNCTION)
    folder.write(
        ".aws-sam/build/template.yaml", FUNCTION.replace("Type:", "Metadata: {}\n    Type:")
    )
    assert counted() == ["Fn"]


SAM_CONFIG = """\
version = 0.1
[default.global.parameters]
stack_name = "shop"
[default.deploy.parameters]
parameter_overrides = "Most=7 Name=\\"a b\\""
[prod.deploy.parameters]
parameter_overrides = ["ParameterKey=Most,ParameterValue=9"]
"""


def test_the_parameters_of_sam_deploy_stand_in_its_configuration(folder, ceilings):
    """--parameters wins, and an environment has a table of its own."""
    text = FUNCTION.replace("Resources:", "Parameters: {Most: {Type: Number}}\nResources:")
    folder.write("template.yaml", text.replace("Executions: 5", "Executions: !Ref Most"))
    assert ceilings(folder.budget(max_connections=100)) == {"Fn": None}
    folder.write("samconfig.toml", SAM_CONFIG)
    found = folder.budget(max_connections=100)
    assert ceilings(found) == {"Fn": 7}
    assert "samconfig.toml" in found.services[0].instances.origin
    given = folder.budget(max_connections=100, parameters=("Most=3",))
    assert ceilings(given) == {"Fn": 3}


# -- YAML and JSON --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("on: yes\noff: no\ny: n", {"on": True, "off": False, "y": "n"}),
        ("a: 010\nb: 0o10\nc: 1:30\nd: 1_000", {"a": 8, "b": "0o10", "c": "1:30", "d": 1000}),
        ("a: 2024-01-01\nb: =\nc: ~\nd:", {"a": "2024-01-01", "b": "=", "c": None, "d": None}),
        ("1: a\n'2': b\nnull: c", {"1": "a", "2": "b", "null": "c"}),
        (
            "a: &x {k: 1}\nb: {<<: *x, l: 2}\nc: *x",
            {"a": {"k": 1}, "b": {"k": 1, "l": 2}, "c": {"k": 1}},
        ),
        (
            "a: &x {k: 1, m: 3}\nb: &y {k: 2}\nc: {<<: [*y, *x]}",
            {"a": {"k": 1, "m": 3}, "b": {"k": 2}, "c": {"k": 2, "m": 3}},
        ),
        ("a: &x 1\nb: *x\nc: &x 2\nd: *x", {"a": 1, "b": 1, "c": 2, "d": 2}),
        (
            "a: !Sub x\nb: !GetAtt R.A.B\nc: !Ref 1",
            {"a": {"Fn::Sub": "x"}, "b": {"Fn::GetAtt": ["R", "A.B"]}, "c": {"Ref": "1"}},
        ),
        (
            "a: !reference [x, y]\nb: !vault |\n  x\nc: !!set {k}",
            {"a": ["x", "y"], "b": "x\n", "c": {"k": None}},
        ),
        (
            "a: !override {k: 1}\nb: !reset null",
            {"a": {"Fn::override": {"k": 1}}, "b": {"Fn::reset": None}},
        ),
        ("a: !!str 1\nb: ! 2\nc: !!float 3\nd: !!binary x", {"a": "1", "b": "2", "c": 3, "d": "x"}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ],
)
def test_yaml_is_read_as_platforms_read_it(tmp_path, text, data):
    """Keys stay text; dates and times stay text; other programs' tags change nothing."""
    file = tmp_path / "a.yaml"
    file.write_bytes(text.encode())
    (found,) = read_documents(file)
    assert found.data == data


def test_every_value_has_its_line():
    """Also below a short form, a merge, an alias and a key of JSON."""
    text = "a: &x\n  b: 1\nc:\n  <<: *x\n  d: !Sub\n    - e\n---\nf: *g\n"
    with pytest.raises(TemplateError, match=r"x\.yaml:8: .*no anchor"):
        parse_documents(text, Path("x.yaml"))
    (found,) = parse_documents(text.partition("---")[0], Path("x.yaml"))
    paths = [("a", "b"), ("c", "b"), ("c", "d"), ("c", "d", "Fn::Sub", 0), ("c", "nothing")]
    assert [found.where(*path).line for path in paths] == [2, 2, 5, 6, 3]
    text = '\n{"a": {"\\ud83d\\ude00": [1,\n2, {\n"b":\n3}]}}\n{"a":\n4}'
    one, two = parse_documents(text, Path("x.json"))
    paths = [("a",), ("a", "\U0001f600", 1), ("a", "\U0001f600", 2, "b"), ("x",)]
    assert [one.where(*path).line for path in paths] == [2, 3, 4, 2]
    assert (two.where().line, two.where("a").line, two.data) == (6, 6, {"a": 4})


def test_json_may_have_comments_and_last_commas(folder, counted):
    """Then it is still a template, with its lines; a URL in a text is no comment."""
    text = '// generated\n{"Resources": {/* one\n*/ "Fn": ' + FUNCTION_JSON[20:-2]
    folder.write("app.json", text.replace('"x"', '"postgres://db/x,}",') + "\n,},}")
    assert counted() == ["Fn"]
    assert folder.budget(max_connections=100).services[0].where.line == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_byte_order_mark_names_the_encoding(folder, encoding):
    """Windows PowerShell writes UTF-16 for `helm template > all.yaml`."""
    (folder.path / "app.yaml").write_bytes(FUNCTION.replace("\n", "\r\n").encode(encoding))
    assert [s.name for s in folder.budget(max_connections=100).services] == ["Fn"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "latin-1"])
def test_a_deployment_in_another_encoding_is_unread(folder, encoding):
    """Platforms refuse it; it is an error if it is named."""
    (folder.path / "app.yaml").write_bytes((FUNCTION + "# \xf6\n").encode(encoding))
    found = folder.budget(max_connections=100)
    assert [Path(each.where.file).name for each in found.unread] == ["app.yaml"]
    refused(folder.run("app.yaml"), "app.yaml: not a text in UTF-8", lines=1)


REPEATED = "      ReservedConcurrentExecutions: 5\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (FUNCTION.replace(REPEATED, REPEATED + REPEATED.replace("5", "7")), 7),
        (FUNCTION + "  Fn: {Type: 'AWS::SNS::Topic'}\n", 8),
        (FUNCTION.replace(REPEATED, REPEATED * 2), None),
        (FUNCTION + "Metadata: {A: 1, A: 2}\n", None),
        (FUNCTION + "    Metadata: {A: 1, A: 2}\n", None),
        ('{"Resources": {\n"A": {"Type": "AWS::A::B"},\n"A": {"Type": "AWS::C::D"}}}', 3),
    ],
)
def test_a_key_that_stands_there_twice(folder, text, line):
    """The last one counts. It is unread if it is a part of a resource, with another value."""
    (folder.path / "app.yaml").write_text(text)
    found = folder.budget(max_connections=100)
    assert [each.where.line for each in found.unread] == ([line] if line else [])


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
CHAIN = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}}}\n" for n in range(1, 10000))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a [" + "x, " * 5000 + "x]\nb: [" + "*a, " * 5000 + "*a]\n",
        CHAIN,
        "a: &a {b: *a}\n",
        "a: " + "[" * 10_000 + "]" * 10_000,
        "[" * 1_000_000,
        "- " * 10_000 + "x",
        "? " * 10_000 + "x",
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        "\n".join(" " * number + "a:" for number in range(2000)),
        '{"a": ' + "1" * 100_000,
    ],
)
def test_a_bomb_ends_in_one_line(folder, text):
    """Memory and time stay bounded: aliases of aliases, and nesting without end."""
    (folder.path / "app.yaml").write_text(text)
    began = time.process_time()
    refused(folder.run("app.yaml"), "app.yaml", lines=1)
    assert time.process_time() - began < 10
    folder.write("other.yaml", FUNCTION)
    assert [each.name for each in folder.budget(max_connections=100).services] == ["Fn"]


def test_a_huge_file_is_listed_or_unread(folder, counted):
    """YAML may have ten million bytes, and JSON fifty, because a Terraform plan may be that large."""
    folder.write("app.yaml", FUNCTION)
    file = folder.write("data.yaml", "[" + "1," * 5_100_000 + "1]")
    assert counted() == ["Fn"]
    assert set(listed(folder.budget(max_connections=100))) == {"data.yaml"}
    refused(folder.run("data.yaml"), "data.yaml: larger than", lines=1)
    file.write_text(FUNCTION + "#" * 10_100_000)
    assert counted("cannot be shown to fit") == ["Fn"]
