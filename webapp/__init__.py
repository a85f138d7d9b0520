"""Deployable 2: the articles API as a web service, synchronous or asynchronous.

app.py                `webapp.app:app`: psycopg2, one worker thread per connection
async_app.py          `webapp.async_app:app`: asyncpg, one event loop
application.py        the application that both are: routes, lifespan, problems
database.py           what an endpoint asks of the database, and what may go wrong
threaded_database.py  the same over a synchronous engine
async_database.py     the same over an asynchronous engine
worker_threads.py     a thread per connection, admission, and a deadline
articles_routes.py    the endpoints of `articles.api`, and their OpenAPI
operations_routes.py  /healthz, /readyz, /metrics
exposition.py         the pool's counters as Prometheus metrics
problem_answers.py    every error as RFC 9457 problem details
body_limit.py         413 before too large a body is read
startup.py            a failed start in one line
configuration.py      the `WEBAPP_*` variables
__main__.py           `python -m webapp [--async]`
"""
