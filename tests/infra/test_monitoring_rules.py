"""The files of monitoring are valid for the programs that read them."""

import pytest
import yaml
from infra.deployed import INFRA
from processes import run
from programs import needs_promtool

MONITORING = INFRA / "monitoring"


def read(name):
    return yaml.safe_load((MONITORING / name).read_text())


def test_the_operators_alerts_are_prometheus_own():
    """The same groups in both formats."""
    assert read("alerts.yaml")["spec"] == read("rules.yaml")


@pytest.mark.process
@needs_promtool
def test_promtool_accepts_the_alerts():
    """Every expression parses, and every template of a summary is valid."""
    answer = run("promtool", "check", "rules", MONITORING / "rules.yaml")
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.process
@needs_promtool
def test_promtool_accepts_the_configuration(tmp_path):
    """With the rules at the path where the container has them."""
    text = (MONITORING / "prometheus.yaml").read_text()
    file = tmp_path / "prometheus.yaml"
    file.write_text(text.replace("/etc/prometheus/rules.yaml", str(MONITORING / "rules.yaml")))
    answer = run("promtool", "check", "config", file)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_what_is_scraped_is_a_service_of_compose():
    """Each target is a service, on the port where it has its metrics."""
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    targets = {
        target
        for job in read("prometheus.yaml")["scrape_configs"]
        for each in job["static_configs"]
        for target in each["targets"]
    }
    web = services["web"]["environment"]["UVICORN_PORT"]
    worker = services["worker"]["environment"]["WORKER_METRICS_PORT"]
    assert targets == {f"web:{web}", f"worker:{worker}"}


def test_grafana_finds_its_dashboard_and_data():
    """The provider reads the folder where compose mounts the dashboard."""
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    mounted = {each["source"]: each["target"] for each in compose["services"]["grafana"]["configs"]}
    (provider,) = read("grafana-dashboards.yaml")["providers"]
    assert mounted["grafana_dashboard"].startswith(provider["options"]["path"] + "/")
    (source,) = read("grafana-datasource.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
