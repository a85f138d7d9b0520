"""Alarms, alerts and panels are about metrics that exist."""

import json
import re

import pytest
import yaml
from infra.deployed import INFRA
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from poolkit.celery.figures import COUNTERS, HISTOGRAMS, Figures
from poolkit.celery.queues import QueueSample, QueueSampler
from poolkit.config.metrics import PoolMetrics
from poolkit.prometheus import PoolCollector

FILES = ("monitoring/rules.yaml", "monitoring/grafana.json", "worker.yaml", "dashboard.yaml")


class Everything(Collector):
    """Each metric of the kit with one figure."""

    def collect(self):
        figures = Figures()
        for name, kind in COUNTERS.items():
            figures.count(name, *kind.labels)
        for name, kind in HISTOGRAMS.items():
            figures.observe(name, 1.0, *kind.labels)
        queues = QueueSampler(None)
        queues.record({"q": QueueSample(1, 1.0)})
        yield from figures.metrics()
        yield from queues.metrics()
        yield from PoolCollector(lambda: {"worker": PoolMetrics().snapshot(None)}).collect()


@pytest.fixture(scope="module")
def exposed():
    """Return the labels of each sample that a scrape may have, by its name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Everything())
    families = text_string_to_metric_families(generate_latest(registry).decode())
    found = {sample.name: set(sample.labels) for each in families for sample in each.samples}
    # CloudWatch has a histogram under its own name.
    return found | {name.removesuffix("_sum"): labels for name, labels in found.items()}


@pytest.mark.parametrize("file", FILES)
def test_metrics_that_are_watched_exist(exposed, file):
    """A renamed metric would leave its alarm silent for ever."""
    named = set(re.findall(r"\bpoolkit_[a-z_]*[a-z]\b(?!_?[.(*])", (INFRA / file).read_text()))
    assert named
    assert named <= exposed.keys()


def test_alerts_and_panels_group_by_labels_that_exist(exposed):
    """`sum by (x)` of a metric without the label x is one line without a name."""
    rules = yaml.safe_load((INFRA / "monitoring/rules.yaml").read_text())
    board = json.loads((INFRA / "monitoring/grafana.json").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for expression in expressions:
        labels = {
            label.strip()
            for group in re.findall(r"by \(([^)]*)\)", expression)
            for label in group.split(",")
        }
        for name in re.findall(r"poolkit_\w+", expression):
            assert labels <= exposed[name], expression


def test_alarms_have_the_dimensions_that_the_collector_sends():
    """CloudWatch takes another set of dimensions for another metric, of which there is no datum."""
    template = (INFRA / "worker.yaml").read_text()
    for metric in re.findall(r"MetricName: (poolkit_\w+)", template):
        alarm = template.partition(f"MetricName: {metric}\n")[2].partition("Statistic")[0]
        dimensions = set(re.findall(r"Name: (\w+)", alarm))
        sent = [
            set(declared.split(", "))
            for declared, selector in re.findall(
                r'dimensions: \[\[([^\]]*)\]\]\s+metric_name_selectors: \["([^"]*)"\]', template
            )
            if re.match(selector, metric)
        ]
        assert dimensions in sent, metric
