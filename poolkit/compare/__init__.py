"""`poolkit compare`: the same load on each target, and what it did to the database."""
