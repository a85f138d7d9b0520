"""The distance to a database: how it is named, and what it costs."""

import os

import psycopg2
import pytest

from poolkit.cli.distance import ignore_ssl_variables
from poolkit.errors import ConfigurationError
from poolkit.local.distance import NAMED_DISTANCES, Distance, own_cost, way_to


@pytest.mark.parametrize(
    ("text", "rtt_s"),
    [
        ("0.5ms", 0.0005),
        ("0.5 ms", 0.0005),
        ("250us", 0.00025),
        (".2s", 0.2),
        ("3", 0.003),
        ("0", 0.0),
        ("loopback", 0.0),
        ("same-az", 0.0005),
        ("cross-region", 0.0624),
    ],
)
def test_a_distance_is_a_name_or_a_round_trip_time(text, rtt_s):
    """A number alone is in milliseconds, as a ping shows them."""
    assert Distance.parse(text).rtt_s == pytest.approx(rtt_s)


@pytest.mark.parametrize("text", ["", "near", "-1ms", "1m", "nan", "inf", "6s", "1e3"])
def test_what_is_no_distance_is_refused_with_what_is_one(text):
    with pytest.raises(ConfigurationError, match="round-trip time"):
        Distance.parse(text)


@pytest.mark.parametrize(
    ("text", "meant"), [("sameaz", "same-az"), ("Cross-AZ", "cross-az"), ("loop", "loopback")]
)
def test_an_unknown_name_is_refused_with_the_nearest(text, meant):
    with pytest.raises(ConfigurationError, match=f"did you mean {meant}"):
        Distance.parse(text)


def test_each_named_distance_has_a_source():
    """Who reads a result at `cross-az` can look up why it is that long."""
    for name, found in NAMED_DISTANCES.items():
        assert found.meaning
        assert found.source
        assert f"{found.rtt_s * 1e3:g} ms" in found.source or name == "loopback"


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (Distance(), "loopback, no TLS"),
        (Distance.parse("same-az", tls=True), "0.5 ms round trip (same-az), TLS"),
        (Distance.parse("62.4"), "62.4 ms round trip, no TLS"),
    ],
)
def test_a_distance_is_shown_with_its_name_and_tls(distance, text):
    assert str(distance) == text


@pytest.mark.process
def test_a_connect_over_a_distance_pays_for_each_round_trip(postgres):
    """4 without TLS, 6 with it: TCP, TLS twice, and three for the login."""
    trips = {}
    for tls in (False, True):
        with way_to(
            postgres.host, postgres.port, Distance(rtt_s=0.001, tls=tls), traces=True
        ) as way:
            psycopg2.connect(
                host=way.network.host,
                port=way.network.port,
                user="poolkit",
                password=postgres.password(),
                dbname="poolkit",
                sslmode="require" if tls else "disable",
            ).close()
            (trace,) = way.network.traces()
            trips[tls] = 1 + trace.first("ready").flights
            assert trace.first("ready").at_s >= (trips[tls] - 1) * 0.0008
    assert trips == {False: 4, True: 6}


@pytest.mark.process
def test_the_proxy_s_own_cost_is_measured_beside_the_direct_way():
    """Its CPU time is that of its process, and what it adds is more than nothing."""
    cost = own_cost(Distance(rtt_s=0.002), rounds=30)
    assert cost.added_s > 0
    assert 0 < cost.cpu_s_per_round_trip < 0.02


def test_variables_of_libpq_for_another_server_do_not_reach_the_embedded_one(monkeypatch):
    """`PGSSLMODE=require` in a shell is for a server that has TLS; the embedded one has none."""
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGSSLROOTCERT", "/nonexistent")
    monkeypatch.setenv("PGAPPNAME", "mine")
    ignore_ssl_variables()
    assert not {"PGSSLMODE", "PGSSLROOTCERT"} & os.environ.keys()
    assert os.environ["PGAPPNAME"] == "mine"
