"""The duration of `poolkit budget`, each run in its own process as from a shell.

`python benchmarks/budget.py [--rounds 5]`

The templates are those of `tests/budget`, whose numbers were computed by hand, this project's
production environment, and three large inputs: 300,000 keys, 1,000 functions and 500 Deployments. Exit
status 1 if the median of a run, or of the processor time of a large one, is 2 s or more.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, machine, read_options

POOLKIT = Path(sys.executable).with_name("poolkit")
LIMIT_S = 2.0
HAND_MADE = {
    "two_workers_a_task_and_a_deployment": ("--service", "Web=5+10"),
    "autoscaling_from_2_to_50": ("--service", "Web=5+10"),
    "a_function_without_reserved_concurrency_has_no_ceiling": (),
    "sam_globals_and_a_parameter": ("--max-connections", "500"),
    "a_proxy_in_front_counts_instead_of_its_clients": (),
    "nested_stacks_are_read_with_their_parameters": (),
    "a_parameter_without_a_value_is_named_with_its_line": (),
    "compose_replicas": ("--service", "web=5+10", "--service", "worker=1+0"),
    "kubernetes_hpa_and_surge": ("--max-connections", "500"),
    "a_kustomize_overlay_changes_the_numbers": (
        *("--environment", "prod"),
        *("--max-connections", "500"),
    ),
}
"""The tests that write the templates, and the options for numbers that these leave open."""


def leave_templates(folder):
    """Run the tests that write the templates; return the folders by the tests' names."""
    names = " or ".join(HAND_MADE)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--basetemp", folder, "-k", names, "tests/budget"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    # pytest cuts long names and numbers them.
    return {
        name: next(each for each in folder.iterdir() if f"test_{name}".startswith(each.name[:-1]))
        for name in HAND_MADE
    }


def run_s(folder, words):
    """Return the seconds of one run. Raises `SystemExit` if it gives no verdict."""
    began = time.perf_counter()
    done = subprocess.run([POOLKIT, "budget", *words], cwd=folder, capture_output=True, check=False)
    if done.returncode not in {0, 1, 3}:
        raise SystemExit(f"{folder}: {done.stderr.decode()}")
    return time.perf_counter() - began


FUNCTION = """
  Fn{0}:
    Type: AWS::Lambda::Function
    Properties:
      Handler: app.handler
      Runtime: python3.13
      ReservedConcurrentExecutions: 2
      Environment:
        Variables: {{DATABASE_HOST: !GetAtt Db.Endpoint.Address, POOLKIT_TARGET: lambda}}"""
DEPLOYMENT = """
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web{0}}}
spec:
  replicas: 2
  template:
    metadata: {{labels: {{app: web{0}}}}}
    spec:
      containers:
        - name: web
          image: example/web
          command: [uvicorn, "app:app", --workers, "2"]
          env:
            - {{name: DATABASE_URL, value: "postgresql://app@db/app"}}
            - {{name: POOLKIT_TARGET, value: web}}"""
DATABASE = """\
Resources:
  Db:
    Type: AWS::RDS::DBInstance
    Properties: {Engine: postgres, DBInstanceClass: db.m7g.large}"""


def large_inputs(folder):
    """Write the large inputs; return their names and files."""
    keys = "\n".join(
        f"    k{n}: {{{', '.join(f'a{m}: v' for m in range(1000))}}}" for n in range(300)
    )
    texts = {
        "300,000 keys": f"{DATABASE}\nMappings:\n  Map:\n{keys}\n",
        "1,000 functions": DATABASE + "".join(FUNCTION.format(n) for n in range(1000)),
        "500 Deployments": "".join(DEPLOYMENT.format(n) for n in range(500)),
    }
    for name, text in texts.items():
        file = folder / f"{name.partition(' ')[2]}.yaml"
        file.write_text(text)
        yield name, file


def processor_s(file):
    """Return the processor time of one run, in seconds, with that of its start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_s(file.parent, (file.name, "--max-connections", "500"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    rounds = read_options(__doc__, rounds=5).rounds
    print(machine())
    slowest = 0.0
    with tempfile.TemporaryDirectory() as work:
        folders = leave_templates(Path(work) / "left")
        cases = [(name, folders[name], (".", *words)) for name, words in HAND_MADE.items()]
        cases.append(("this project, prod", ROOT, ("infra", "--environment", "prod")))
        for name, folder, words in cases:
            taken = [run_s(folder, words) for _ in range(rounds)]
            slowest = max(slowest, statistics.median(taken))
            print(f"{statistics.median(taken):6.2f} s (to {max(taken):.2f})  {name}")
        for name, file in large_inputs(Path(work)):
            taken = [processor_s(file) for _ in range(rounds)]
            slowest = max(slowest, statistics.median(taken))
            print(f"{statistics.median(taken):6.2f} s of processor time  {name}")
    print(f"slowest median {slowest:.2f} s; at most {LIMIT_S:.0f} s")
    return int(slowest >= LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
