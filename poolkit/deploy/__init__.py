"""From the checkout to AWS: what is packaged, and how stacks are deployed, followed and removed.

package_settings.py   `[tool.poolkit.package.TARGET]` in pyproject.toml
locked_wheels.py      the part of the lock file that a target needs, installed by uv
project_code.py       the project's own files, and those that never travel
pruning.py            what AWS Lambda never reads
bytecode.py           compiling for an interpreter that has the same minor version
deterministic_zip.py  the same bytes from the same files
package_lambda.py     `poolkit package lambda`
image_context.py      `poolkit package web|worker`
"""
