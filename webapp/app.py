"""The composition root of the synchronous web service: `uvicorn webapp.app:app`."""

from webapp.application import make_application
from webapp.database import open_threaded_database

app = make_application("web", open_threaded_database)
