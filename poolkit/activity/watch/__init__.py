"""`poolkit watch`: who is connected, live."""
