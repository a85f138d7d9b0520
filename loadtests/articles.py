"""What a user of the articles API does: reads mostly, writes now and then."""

import random

from locust import FastHttpUser, between, task

from poolkit import loadtest

loadtest.register()


class Reader(FastHttpUser):
    """Lists articles, opens one of them, sometimes writes or corrects one."""

    wait_time = between(0.2, 0.8)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.known: dict[int, int] = {}
        """The articles this user has seen: id -> version."""

    @task(6)
    def read(self) -> None:
        """Open an article; the first visit begins with the list."""
        if not self.known:
            self.browse()
            return
        article = random.choice(list(self.known))
        response = self.client.get(f"/articles/{article}", name="/articles/{id}")
        if response.status_code == 200:  # not `ok`: true without an answer (0), too
            self.known[article] = response.json()["version"]

    @task(3)
    def browse(self) -> None:
        """Look at the newest articles."""
        response = self.client.get("/articles?limit=20", name="/articles")
        if response.status_code == 200:
            for article in response.json()["items"]:
                self.known[article["id"]] = article["version"]

    @task(1)
    def create(self) -> None:
        """Write an article."""
        article = {"title": "On waiting", "body": "A queue is a promise. " * 20}
        response = self.client.post("/articles", json=article)
        if response.status_code == 201:
            created = response.json()
            self.known[created["id"]] = created["version"]

    @task(1)
    def update(self) -> None:
        """Correct an article; a faster change by another user (409) is no failure."""
        if not self.known:
            self.create()
            return
        article, version = random.choice(list(self.known.items()))
        change = {"title": "On waiting, again", "version": version}
        with self.client.patch(
            f"/articles/{article}", json=change, name="/articles/{id}", catch_response=True
        ) as response:
            if response.status_code == 409:
                self.known.pop(article)
                response.success()
            elif response.status_code == 200:
                self.known[article] = response.json()["version"]
