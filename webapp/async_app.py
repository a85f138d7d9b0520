"""The composition root of the asynchronous web service: `uvicorn webapp.async_app:app`."""

from webapp.application import make_application
from webapp.database import open_async_database

app = make_application("web_async", open_async_database)
