"""What every endpoint does with good input."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from behaviour.face import media_type, problem_of
from behaviour.faces import FACES, opened

ARTICLE = {"title": "Title", "body": "Body"}
DOCUMENT = {"id": "report-1", "title": "Report", "text": "One sentence. " * 200}


def test_an_article_is_created_with_its_place_and_version(face):
    """POST answers 201 with the article, its Location and its ETag."""
    answer = face.request("POST", "/articles", body=ARTICLE)
    assert answer.status == 201
    assert media_type(answer) == "application/json"
    assert answer.headers["location"] == f"/articles/{answer.json()['id']}"
    assert answer.headers["etag"] == '"1"'
    assert {name: answer.json()[name] for name in ARTICLE} == ARTICLE
    assert answer.json()["version"] == 1


def test_an_article_reads_as_it_was_answered_when_created(face):
    """GET answers the very bytes that POST answered."""
    created = face.request("POST", "/articles", body={"title": "Zürich 🚋", "body": "a\tb\n"})
    read = face.request("GET", created.headers["location"])
    assert (read.status, read.body) == (200, created.body)


def test_times_are_in_utc_to_the_microsecond(face):
    """Whatever the driver gives, times are RFC 3339 in UTC."""
    created = face.request("POST", "/articles", body=ARTICLE)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", created.json()["created_at"])


def test_an_update_changes_what_was_sent_and_raises_the_version(face):
    """PATCH with the right version changes that member alone."""
    path = face.request("POST", "/articles", body=ARTICLE).headers["location"]
    answer = face.request("PATCH", path, body={"version": 1, "title": "New"})
    assert answer.status == 200
    article = answer.json()
    assert (article["title"], article["body"], article["version"]) == ("New", "Body", 2)
    assert face.request("GET", path).body == answer.body


def test_a_stale_update_is_refused_and_nothing_is_lost(face):
    """PATCH with an old version answers 409 with the current one and changes nothing."""
    path = face.request("POST", "/articles", body=ARTICLE).headers["location"]
    face.request("PATCH", path, body={"version": 1, "title": "First"})
    answer = face.request("PATCH", path, body={"version": 1, "title": "Second"})
    problem = problem_of(answer, 409)
    assert (problem["type"], problem["current_version"]) == ("/problems/stale-version", 2)
    assert face.request("GET", path).json()["title"] == "First"


@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        *(("*", 200), ('"1"', 200), ('"7", "1"', 200), ('"a,b" ,, "1",', 200)),
        *(('"2"', 412), ('W/"1"', 412), ('"7", W/"1"', 412), ("1", 412), ('"1', 412), ("", 412)),
        *(('"1" "2"', 412), ('"1", *', 412)),
    ],
)
def test_if_match_decides_before_the_version(face, if_match, status):
    """RFC 9110, 13.1.1: strong comparison with the ETag; what is malformed matches nothing."""
    path = face.request("POST", "/articles", body=ARTICLE).headers["location"]
    change = {"version": 1, "title": "New"}
    answer = face.request("PATCH", path, body=change, headers={"if-match": if_match})
    if status == 412:
        assert problem_of(answer, 412)["current_version"] == 1
    assert answer.status == status
    assert (face.request("GET", path).headers["etag"] == '"2"') == (status == 200)


def test_if_match_and_the_version_have_answers_of_their_own(face):
    """A wrong If-Match is 412, a matching one with an old version 409, and without an article 404."""
    path = face.request("POST", "/articles", body=ARTICLE).headers["location"]
    face.request("PATCH", path, body={"version": 1, "title": "Second"})

    def status(path, version, if_match):
        change = {"version": version, "title": "Third"}
        return face.request("PATCH", path, body=change, headers={"if-match": if_match}).status

    assert [status(path, 1, '"1"'), status(path, 2, '"1"')] == [412, 412]
    assert [status(path, 1, '"2"'), status(path, 1, "*")] == [409, 409]
    assert [status("/articles/9", 1, "*"), status("/articles/9", 1, '"1"')] == [404, 404]
    assert status(path, 2, '"2"') == 200


@pytest.mark.parametrize("path", ["/articles", "/articles/1", "/documents/report-1", "/articles/9"])
def test_head_is_get_without_the_body(face, path):
    """The same status and headers, the length included."""
    face.request("POST", "/articles", body=ARTICLE)
    face.request("POST", "/documents", body=DOCUMENT)
    get, head = face.request("GET", path), face.request("HEAD", path)
    assert (head.status, head.body) == (get.status, b"")
    assert head.headers["content-length"] == str(len(get.body))
    for name in ("content-type", "etag"):
        assert head.headers.get(name) == get.headers.get(name)
    assert face.request("HEAD", "/nothing").status == 404


def test_a_whole_number_may_have_a_point(face):
    """To JSON Schema 1.0 is an integer."""
    path = face.request("POST", "/articles", body=ARTICLE).headers["location"]
    answer = face.request("PATCH", path, body=b'{"version": 1.0, "title": "New"}')
    assert (answer.status, answer.json()["version"]) == (200, 2)


def test_pages_show_every_article_once_though_more_are_written(face):
    """Keyset pages, newest first, neither repeat nor miss while articles are inserted."""
    ids = [face.request("POST", "/articles", body=ARTICLE).json()["id"] for _ in range(7)]
    seen, query = [], {"limit": "3"}
    while True:
        page = face.request("GET", "/articles", query=query)
        assert page.status == 200
        seen += [item["id"] for item in page.json()["items"]]
        face.request("POST", "/articles", body=ARTICLE)
        if page.json()["next_before"] is None:
            break
        query = {"limit": "3", "before": page.json()["next_before"]}
    assert seen == sorted(ids, reverse=True)


def test_a_list_shows_no_bodies(face):
    """A page stays small: its items have no body."""
    face.request("POST", "/articles", body=ARTICLE)
    page = face.request("GET", "/articles").json()
    assert set(page["items"][0]) == {"id", "title", "version", "created_at", "updated_at"}
    assert page["next_before"] is None


def test_a_document_is_cut_into_chunks_once(face):
    """The same document sent twice is stored once: 201, then 200 with the same content."""
    first = face.request("POST", "/documents", body=DOCUMENT)
    second = face.request("POST", "/documents", body=DOCUMENT)
    assert (first.status, second.status) == (201, 200)
    assert first.headers["location"] == "/documents/report-1"
    assert first.body == second.body
    read = face.request("GET", "/documents/report-1").json()
    assert read["chunk_count"] == len(read["chunks"]) > 1


def test_of_two_updates_at_once_one_succeeds(face, migrated_database):
    """Two PATCHes for one version: one 200 and one 409, never two of a kind."""
    path = face.request("POST", "/articles", body=ARTICLE).headers["location"]

    def update(title):
        return face.request("PATCH", path, body={"version": 1, "title": title})

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(update, ("a", "b")))
    assert sorted(answer.status for answer in answers) == [200, 409]


@pytest.mark.parametrize("path", ["/articles/1", "/documents/none"])
def test_what_is_not_there_is_404(face, path):
    """GET of what does not exist answers a 404 that names what was looked for."""
    assert problem_of(face.request("GET", path), 404)["detail"].startswith("there is no ")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/a+json"])
def test_a_json_type_may_have_parameters_and_a_suffix(face, content_type):
    """The content type is read as RFC 6839 and RFC 9110 describe it."""
    body = json.dumps(ARTICLE).encode()
    answer = face.request("POST", "/articles", body=body, headers={"content-type": content_type})
    assert answer.status == 201


# -- faces agree ----------------------------------------------------------------------------


SCRIPT = [
    ("POST", "/articles", {}, {"title": "Title", "body": "Ü \U0001f68b"}),
    ("GET", "/articles/1", {}, None),
    ("PATCH", "/articles/1", {}, {"version": 1, "body": "new"}),
    ("PATCH", "/articles/1", {}, {"version": 1, "body": "newer"}),
    ("PATCH", "/articles/2", {}, {"version": 1, "body": "newer"}),
    ("POST", "/articles", {}, {"title": "Two", "body": ""}),
    ("GET", "/articles", {}, None),
    ("GET", "/articles", {"limit": "1"}, None),
    ("GET", "/articles", {"limit": "1", "before": "2"}, None),
    ("GET", "/articles", {"limit": "0", "x": "é&="}, None),
    ("GET", "/articles", {"before": "x"}, None),
    ("GET", "/articles/9", {}, None),
    ("GET", "/articles/x", {}, None),
    ("POST", "/articles", {}, {"title": "", "body": "\0", "more": 1}),
    ("POST", "/articles", {}, b"{"),
    ("POST", "/articles", {}, b"x" * 1_048_577),
    ("POST", "/documents", {}, {"id": "d", "title": "D", "text": "One. Two. " * 300}),
    ("POST", "/documents", {}, {"id": "d", "title": "D", "text": "One. Two. " * 300}),
    ("GET", "/documents/d", {}, None),
    ("GET", "/documents/e", {}, None),
    ("GET", "/documents/-", {}, None),
    ("GET", "/nothing", {}, None),
    ("DELETE", "/articles/1", {}, None),
]
COMPARED_HEADERS = ("content-type", "etag", "location", "allow", "retry-after")


def answers_of(name, database):
    database.execute("TRUNCATE articles, documents, chunks RESTART IDENTITY")
    with opened(name, database.url(driver="")) as face:
        return [seen(face.request(m, p, query=q, body=b)) for m, p, q, b in SCRIPT]


def seen(answer):
    headers = {name: answer.headers.get(name) for name in COMPARED_HEADERS}
    body = json.loads(re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+Z", b"<moment>", answer.body))
    if answer.status >= 400:
        # Which errors are found, and how they are worded, is each framework's own.
        body = {name: body[name] for name in ("type", "title", "status")}
    return answer.status, headers, body


def test_every_face_gives_the_same_answers(migrated_database):
    """Status, content and the API's own headers do not depend on the deployable."""
    first, *others = FACES
    expected = answers_of(first, migrated_database)
    for name in others:
        for step, ours, theirs in zip(
            SCRIPT, expected, answers_of(name, migrated_database), strict=True
        ):
            assert theirs == ours, f"{name} and {first} disagree about {step[:3]}"
