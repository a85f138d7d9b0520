"""From the checkout to AWS: what is packaged, and how stacks are deployed, followed and removed.

package_settings.py   `[tool.poolkit.package.TARGET]` in pyproject.toml
locked_wheels.py      the part of the lock file that a target needs, installed by uv
project_code.py       the project's own files, and those that never travel
pruning.py            what AWS Lambda never reads
bytecode.py           compiling for an interpreter that has the same minor version
deterministic_zip.py  the same bytes from the same files
package_lambda.py     `poolkit package lambda`
image_context.py      `poolkit package web|worker`
package_command.py    what is printed of both

environment.py        which stacks an environment has, with which parameters, in which order
template.py           what a template declares, held against what it is given
aws.py                AWS's clients, and its refusals in plain words
stacks.py             stacks as they are in AWS
preflight.py          everything that can be known before anything is changed
uploads.py            the code bucket
change_set.py         what a deployment would do, before it does it
plan.py               that, for a person to read
events.py             following AWS at work; the first cause of a failure
deployment.py         `poolkit deploy`: the steps above, stack by stack
rollback.py           `poolkit deploy --rollback`
removal.py            `poolkit destroy`
protection.py         what AWS would refuse to remove
overview.py           `poolkit status`
terminal.py           where all of them print
"""
