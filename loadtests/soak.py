"""A soak: the same load for hours, to see what leaks.

For any locustfile:

    locust -f loadtests/articles.py,loadtests/soak.py --users 20 --run-time 8h --host URL
"""

from locust import LoadTestShape


class Soak(LoadTestShape):
    """All of --users for --run-time (8 hours); they start and stop in a twentieth of it."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Return the wanted number of users, and the number that may start a second."""
        options = self.runner.environment.parsed_options
        users, run_time = options.num_users or 20, options.run_time or 8 * 3600
        left = run_time - self.get_run_time()
        if left <= 0:
            return None
        return (users if left > run_time / 20 else 1), users / (run_time / 20)
