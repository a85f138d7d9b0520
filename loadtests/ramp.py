"""A ramp: more and more users, until something fails.

For any locustfile:

    locust -f loadtests/articles.py,loadtests/ramp.py --users 100 --run-time 10m --host URL
"""

from math import ceil

from locust import LoadTestShape


class Ramp(LoadTestShape):
    """Ten steps of equal length and height, up to --users within --run-time (10 minutes)."""

    use_common_options = True
    steps = 10

    def tick(self) -> tuple[int, float] | None:
        """Return the wanted number of users, and the number that may start a second."""
        options = self.runner.environment.parsed_options
        users, run_time = options.num_users or 100, options.run_time or 600
        step = int(self.get_run_time() / run_time * self.steps) + 1
        if step > self.steps:
            return None
        return ceil(users * step / self.steps), users
