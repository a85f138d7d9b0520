"""Requests that start on a schedule, however slow the server is."""
