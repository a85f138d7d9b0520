"""The simulation of the worker's scaling, from its files.

Their folder is not on the path of the tests: its names, such as `budget`, are folders of tests too.
"""

import importlib.util
import sys

from infra.deployed import ROOT


def _loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


autoscaling = _loaded("autoscaling")  # worker_scaling imports it
worker_scaling = _loaded("worker_scaling")
