"""Deployable 2: the articles API as a web service, synchronous or asynchronous.

app.py              `webapp.app:app`: psycopg2, one worker thread per connection
async_app.py        `webapp.async_app:app`: asyncpg, one event loop
application.py      the application that both are: lifespan, middleware, routes
routes.py           the endpoints of `articles.api`, /healthz, /readyz, /metrics, and their OpenAPI
problem_answers.py  every error as RFC 9457 problem details; 413 before a large body is read
database.py         one interface for the endpoints, over a synchronous and an asynchronous engine
worker_threads.py   a thread per connection, admission, and a deadline
configuration.py    the `WEBAPP_*` variables
__main__.py         `python -m webapp [--async]`
"""
