"""A spike: quiet, then all users at once, then quiet again.

For any locustfile:

    locust -f loadtests/articles.py,loadtests/spike.py --users 100 --run-time 5m --host URL
"""

from locust import LoadTestShape


class Spike(LoadTestShape):
    """A tenth of --users; all of them in the third fifth of --run-time (5 minutes)."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Return the wanted number of users, and the number that may start a second."""
        options = self.runner.environment.parsed_options
        users, run_time = options.num_users or 100, options.run_time or 300
        passed = self.get_run_time() / run_time
        if passed >= 1:
            return None
        return (users if 0.4 <= passed < 0.6 else max(1, users // 10)), users
