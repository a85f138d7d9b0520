"""Tasks that start on a schedule, however slow the server is; and the closed loop beside it."""
