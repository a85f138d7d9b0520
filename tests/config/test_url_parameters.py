"""The parameters of a URL: every one of libpq's own list works, is translated, or is refused."""

import ctypes
import itertools
import re
import ssl
import subprocess
from pathlib import Path

import psycopg2
import pytest
from driving import Client, TlsFront
from psycopg import pq
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from poolkit.config.presets import PresetError, parse_url, preset
from poolkit.config.session import translate
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, DatabaseUnavailable

PAGE = Path(__file__).parents[2] / "docs/configuration.md"
# A value of each parameter that is none of its default's, where one is needed.
PROBES = {
    "connect_timeout": "7", "client_encoding": "latin1", "host": "h2", "port": "77",
    "keepalives": "0", "keepalives_idle": "77", "keepalives_interval": "7", "keepalives_count": "7",
    "tcp_user_timeout": "7777", "sslmode": "require", "sslnegotiation": "direct&sslmode=require",
    "sslcompression": "1", "sslcert": "{client.pem}&sslkey={client.key}",
    "sslkey": "{client.key}&sslcert={client.pem}",
    "sslpassword": "x&sslkey={client.key}&sslcert={client.pem}", "sslcertmode": "require",
    "sslrootcert": "{ca.pem}", "sslcrl": "{empty.crl}&sslrootcert={ca.pem}",
    "sslcrldir": "{.}&sslrootcert={ca.pem}", "sslsni": "0", "ssl_min_protocol_version": "TLSv1.3",
    "ssl_max_protocol_version": "TLSv1.2", "min_protocol_version": "3.2",
    "max_protocol_version": "3.2", "gssencmode": "require", "gssdelegation": "1",
    "replication": "database", "target_session_attrs": "primary", "load_balance_hosts": "random",
    "channel_binding": "require", "options": "-c jit=off", "gsslib": "gssapi",
}  # fmt: skip


def libpq_parameters():
    """Return the names in the lists of both installed libpqs, by PQconndefaults."""
    names = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    (library,) = Path(psycopg2.__file__).parents[1].glob("psycopg2_binary.libs/libpq*.so*")

    class Option(ctypes.Structure):
        _fields_ = (
            [("keyword", ctypes.c_char_p)]
            + [
                (name, ctypes.c_char_p)
                for name in ("envvar", "compiled", "val", "label", "dispchar")
            ]
            + [("dispsize", ctypes.c_int)]
        )

    function = ctypes.CDLL(str(library)).PQconndefaults
    function.restype = ctypes.POINTER(Option)
    options = itertools.takewhile(lambda option: option.keyword is not None, function())
    return sorted(names.union(option.keyword.decode() for option in options))


LIBPQ = [
    pytest.param(name, marks=pytest.mark.process if name.startswith("ssl") else ())
    for name in libpq_parameters()
]


def documented():
    """Return what the page says of each parameter, for libpq's drivers and for asyncpg."""
    text = PAGE.read_text().partition("## Parameters of a PostgreSQL URL")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    return {name: row[1:] for row in rows for name in re.findall(r"`(\w+)`", row[0])}


SAID = documented()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority, a server's certificate, and lists that do and do not revoke it."""
    home = tmp_path_factory.mktemp("authority")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=home)

    new = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl("req", "-x509", *new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *new, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    openssl("req", "-x509", *new, "-subj", "/CN=me", "-keyout", "client.key", "-out", "client.pem")
    (home / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\n"
        "certificate=ca.pem\nprivate_key=ca.key\ndefault_md=sha256\ndefault_days=2\n"
        "default_crl_days=2\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n"
        "[e]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
    )
    (home / "index.txt").touch()
    (home / "serial").write_text("01\n")
    ca = ("ca", "-batch", "-config", "ca.cnf")
    openssl(*ca, "-in", "server.csr", "-out", "server.pem")
    openssl(*ca, "-gencrl", "-out", "empty.crl")
    openssl(*ca, "-revoke", "server.pem")
    openssl(*ca, "-gencrl", "-out", "revoked.crl")
    return home


class Asked(Exception):
    """Raised in place of a connect."""


def asked_of_driver(target, query):
    """Return the arguments that the driver is called with for a URL."""
    url = f"postgresql://me:pw@h1/d{query and '?'}{query}"
    chosen = preset(target, "prod").replace(target_session_attrs="any")
    driver = {"web": "psycopg2", "web_async": "asyncpg"}[target]
    make = chosen.create_async_engine if chosen.is_async else chosen.create_engine
    engine = make(url.replace(":", f"+{driver}:", 1), application_name=None)
    engine = getattr(engine, "sync_engine", engine)

    found = {}

    def connect(*arguments, **named):
        found.update(named)
        raise Asked

    vars(engine.dialect)["connect"] = connect
    with pytest.raises(Asked):
        engine.raw_connection()
    context = found.get("ssl")
    if isinstance(context, ssl.SSLContext):
        details = (
            "check_hostname",
            "verify_mode",
            "verify_flags",
            "minimum_version",
            "maximum_version",
        )
        found["ssl"] = [str(getattr(context, each)) for each in details] + [
            len(context.get_ca_certs())
        ]
    found["socket"] = [vars(each) for each in _listeners(engine)]
    return found


def _listeners(engine):
    """Return what sets the options of asyncpg's sockets."""
    from poolkit.config import presets

    return [each for each in engine.pool.dispatch.connect if isinstance(each, presets._KeepAlive)]


def probe(name, home):
    text = PROBES.get(name, "other")
    return f"{name}=" + re.sub(r"\{(.+?)\}", lambda found: str(home / found[1]), text)


@pytest.fixture
def home(request):
    name = request.getfixturevalue("parameter")
    return request.getfixturevalue("authority") if name.startswith("ssl") else Path("/")


@pytest.mark.parametrize("parameter", LIBPQ)
def test_libpqs_drivers_get_the_parameter(parameter, home):
    """psycopg2 is called with it, or it is refused by the name: its libpq may be older."""
    assert parameter in SAID, "docs/configuration.md lists each"
    try:
        found = asked_of_driver("web", probe(parameter, home))
    except PresetError as error:
        assert parameter in str(error)  # noqa: PT017  (most are not refused)
        with pytest.raises(psycopg2.ProgrammingError, match=parameter):
            psycopg2.extensions.make_dsn(**{parameter: "1"})
        return
    value = PROBES.get(parameter, "other").partition("&")[0]
    given = str(found["host" if parameter == "host" else parameter])
    assert given.endswith(re.sub(r"\{(.+?)\}", r"\1", value).lstrip(".")), found


@pytest.mark.parametrize("parameter", LIBPQ)
def test_asyncpg_is_asked_for_the_same_or_the_parameter_is_refused(parameter, home):
    """No parameter leaves asyncpg's arguments as they are, unless they fulfil it anyway."""
    _, said = SAID[parameter]
    query = probe(parameter, home)
    if said != "the same":
        with pytest.raises(PresetError, match=f"asyncpg has no {parameter}") as caught:
            asked_of_driver("web_async", query)
        assert caught.value.fields == ("url",)
        for value in re.findall(r"`(.+?)`", said):
            asked_of_driver("web_async", f"{parameter}={value}")
        return
    after = asked_of_driver("web_async", query)
    # The preset always has a name. A certificate and its key have been read without an error.
    if parameter not in ("fallback_application_name", "sslcert", "sslkey", "sslpassword"):
        assert asked_of_driver("web_async", query.partition("&")[2]) != after


@pytest.mark.parametrize("target", ["web", "web_async"])
@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("sslmod=require", "sslmode"),
        ("no_such_parameter=1", "no_such_parameter"),
        ("sslmode=requre", "sslmode"),
        ("sslmode=require&sslmode=disable", "sslmode"),
        ("ssl=true&sslmode=disable", "ssl and sslmode"),
        ("sslmode=require&sslcrl=/ca.crl", "sslcrl"),
        ("sslmode=verify-full&sslrootcert=/dev/null&sslcrl=/no/such.crl", "sslcrl"),
        ("connect_timeout=3&connect_timeout=4", "connect_timeout"),
    ],
)
def test_a_parameter_that_cannot_be_meant_is_refused_at_start(target, query, named):
    """A misspelling, an unknown value, two of them, a list of revoked certificates in vain."""
    with pytest.raises(PresetError, match=named):
        asked_of_driver(target, query)


@pytest.mark.parametrize("query", ["passfile=/p", "ssl=true", "command_timeout=3", "user=you"])
def test_further_parameters_are_taken(query):
    """asyncpg's own numbers, JDBC's flag, and the user in another place."""
    found = asked_of_driver("web_async", query)
    name, _, value = query.partition("=")
    assert found[name] == {"ssl": "require", "command_timeout": 3.0}.get(name, value)


def test_settings_name_the_variable():
    """A refused parameter of DATABASE_URL is a ConfigurationError that names it."""
    url = "postgresql://me:pw@localhost/d?channel_binding=require"
    with pytest.raises(ConfigurationError, match="DATABASE_URL: asyncpg has no channel_binding"):
        Settings.from_environ({"DATABASE_URL": url, "POOLKIT_TARGET": "web_async"})


@pytest.mark.parametrize(
    ("url", "parameter"),
    [
        ("mysql+pymysql://me@h/d?ssl_mode=REQUIRED", "ssl_mode"),
        ("mysql+asyncmy://me@h/d?no_such=1", "no_such"),
    ],
)
def test_a_parameter_that_mysqls_driver_lacks_is_refused_at_start(url, parameter):
    """Instead of a TypeError at the first connect."""
    chosen = preset("web_async" if "asyncmy" in url else "web")
    make = chosen.create_async_engine if chosen.is_async else chosen.create_engine
    with pytest.raises(PresetError, match=parameter):
        make(url)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_a_revoked_certificate_is_refused(driver, authority, database):
    """With `sslcrl` each driver refuses the server; with a list that does not have it, none does."""
    front = TlsFront(database.server.port, authority / "server.pem", authority / "server.key")
    url = database.url(driver).replace(f":{front.target}/", f":{front.port}/")
    url += f"?sslmode=verify-full&sslrootcert={authority}/ca.pem&sslcrl={authority}"
    chosen = preset("web_async" if driver == "asyncpg" else "web", "prod").replace(pool_size=1)
    try:
        client = Client(chosen, f"{url}/empty.crl")
        assert client.scalar("SELECT 1") == 1
        client.close()
        client = Client(chosen.replace(retry_connect=False), f"{url}/revoked.crl")
        with pytest.raises(
            (OperationalError, OSError), match="certificate verify failed"
        ) as caught:
            client.scalar("SELECT 1")
        assert isinstance(translate(caught.value), DatabaseUnavailable)
        client.close()
    finally:
        front.close()


# -- passwords --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password",
    ["p@Geheim", "p@Gehe/im", "p@Geheim:1", "p@Geheim?a=b", "@Geheim", "p?a=Geheim@x", "p@Gehe,im",
     "p@[Geheim", "p:@Geheim", "a@b@Geheim", "p@Geheim#1"],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["postgresql", "postgres", "postgresql+psycopg", "mysql"])
def test_an_at_sign_that_is_not_escaped_is_refused_without_the_password(backend, password):
    """The message shows nothing of the URL, and says how to write it."""
    url = f"{backend}://me:{password}@db.example.com:5432/app?application_name=x"
    for read in (preset("web").url, lambda url: Settings.from_environ({"DATABASE_URL": url})):
        with pytest.raises(ValueError, match="%40") as caught:
            read(url)
        assert "Gehe" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "password", ["p:ss", "p/ss", "p#ss", "p?ss", "p%ss", "[p]ss", "p ss", "p,ss"]
)
def test_other_characters_need_no_escape(password):
    """What SQLAlchemy takes for the password is taken."""
    parsed = parse_url(f"postgresql://me:{password}@h/d")
    assert (parsed.password, parsed.host) == (password, "h")


@pytest.mark.parametrize(
    "url",
    ["postgresql://me@h/d?application_name=a@b", "postgresql://me@/d?host=@abstract",
     "sqlite:////tmp/a@b/file.db", "postgresql://me%40there:p%40ss@h/d"],
)  # fmt: skip
def test_an_at_sign_where_it_may_be_is_taken(url):
    """In a parameter that is known, in a file's name, and escaped."""
    assert parse_url(url).drivername in url


def test_an_at_sign_in_a_parsed_urls_host_is_refused():
    """SQLAlchemy has parsed it, and the driver's error would name the host."""
    with pytest.raises(PresetError, match="%40"):
        preset("web").url(create_engine("postgresql+psycopg2://me:p@Geheim@h/d").url)


# -- several hosts ----------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
@pytest.mark.parametrize(
    "form",
    ["127.0.0.1:1,127.0.0.1:{port}/{name}", "/{name}?host=127.0.0.1:1&host=127.0.0.1:{port}",
     "/{name}?host=127.0.0.1,127.0.0.1&port=1,{port}", "[::1]:1,127.0.0.1:{port}/{name}",
     "/{name}?host=[::1]:1&host=127.0.0.1:{port}"],
)  # fmt: skip
def test_several_hosts_are_tried_in_turn(driver, form, database):
    """In libpq's form as in SQLAlchemy's, also with IPv6."""
    login, _, _ = database.url(driver).rpartition("@")
    place = form.format(port=database.server.port, name=database.name)
    chosen = preset("web_async" if driver == "asyncpg" else "web", "prod").replace(pool_size=1)
    client = Client(chosen, f"{login}@{place}")
    assert client.scalar("SELECT 1") == 1
    client.close()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_a_socket_s_directory_may_be_the_escaped_host(driver):
    """As in libpq's URIs; it is this machine, which needs no TLS."""
    url = "postgresql://me:s3cret@%2Frun%2Fpostgresql:5433/d"
    target = "web_async" if driver == "asyncpg" else "web"
    assert dict(preset(target).url(url).query) == {"host": "/run/postgresql", "port": "5433"}
    Settings.from_environ({"DATABASE_URL": url, "POOLKIT_ENVIRONMENT": "prod"})
