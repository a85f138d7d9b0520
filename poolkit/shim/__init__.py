"""The folder that `--pool` puts on a target's PYTHONPATH, and the records that it leaves.

sitecustomize.py runs in the target's interpreter, which need not have poolkit. It writes one record
per process; records.py reads them in this one.
"""
