"""poolkit: one SQLAlchemy codebase as a Lambda function, a web service and a worker.

Nothing is imported here: a Lambda function that imports `poolkit.config` pays for that
package and for nothing else.
"""
