"""A pool's counters as Prometheus reads them."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from poolkit.config.metrics import PoolMetrics
from poolkit.prometheus import PoolCollector, exposition


def counted():
    """Return the snapshot of a pool with one checkout of 3 ms and one that timed out."""
    metrics = PoolMetrics()
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=7)
    metrics.began_waiting()
    metrics.waited(0.003)
    metrics.began_waiting()
    metrics.gave_up(timed_out=True)
    return metrics.snapshot(engine.pool)


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_pool_has_its_metrics_under_its_name():
    """One family for each metric, and one sample of it for each pool."""
    text = exposition({"web": counted(), "reports": counted()})
    found = samples(text)
    for name in ("web", "reports"):
        assert found["poolkit_pool_size", ("target", name)] == 7
        assert found["poolkit_pool_checkouts_total", ("target", name)] == 1
        assert found["poolkit_pool_checkout_timeouts_total", ("target", name)] == 1
    assert text.count(b"# TYPE poolkit_pool_size gauge") == 1


def test_the_buckets_of_a_histogram_are_cumulative():
    """A wait of 3 ms counts in every bucket from 5 ms on."""
    found = samples(exposition({"web": counted()}))
    name = "poolkit_pool_checkout_wait_seconds"
    assert found[f"{name}_bucket", ("le", "0.0025"), ("target", "web")] == 0
    assert found[f"{name}_bucket", ("le", "0.005"), ("target", "web")] == 1
    assert found[f"{name}_bucket", ("le", "+Inf"), ("target", "web")] == 1
    assert found[f"{name}_count", ("target", "web")] == 1
    assert found[f"{name}_sum", ("target", "web")] == 0.003


def test_a_registry_of_the_service_s_own_takes_a_pool():
    """The collector asks for the pool's state at each scrape, not when it is registered."""
    asked = []
    registry = CollectorRegistry(auto_describe=True)
    registry.register(PoolCollector(lambda: asked.append(1) or {"web": counted()}))
    assert asked == []
    assert samples(generate_latest(registry))["poolkit_pool_size", ("target", "web")] == 7
    assert len(asked) == 1
