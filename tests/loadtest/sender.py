"""A locustfile whose users need a broker and a database."""

from locust import task

from poolkit import loadtest
from poolkit.loadtest.task_user import TaskUser

loadtest.register()


class Sender(TaskUser):
    committed = "SELECT id FROM documents WHERE id = ANY(:keys)"
    needs = (*TaskUser.needs, ("WORKER_BROKER_URL", "the worker's broker, to send to"))

    @task
    def send(self) -> None:
        self.submit("send", key="a", send=lambda: None)
