"""Deployable 2: the articles API as a web service, synchronous or asynchronous.

    uvicorn webapp.app:app          psycopg2; as many requests at a time as the pool has connections
    uvicorn webapp.async_app:app    asyncpg, one event loop

app.py, async_app.py   the endpoints, and the routes for an orchestrator
application.py         what both are: limits, problems, and the answers to the domain's errors
"""
