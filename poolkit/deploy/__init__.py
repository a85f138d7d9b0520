"""From the checkout to AWS: packages, and the deployment, progress and removal of stacks.

package/         `poolkit package`: the function's zip, an image's build context

environment.py   an environment's stacks and parameters; a template and what it declares
aws.py           AWS's clients and code bucket; AWS's refusals as one-line messages
stacks.py        the stacks that AWS has; `poolkit status`
preflight.py     every check that needs no change
change_set.py    what a deployment would do, computed by AWS and printed before it is done
progress.py      a stack's events while AWS works; the first cause of a failure
deployment.py    `poolkit deploy`, stack by stack, and `--rollback`
removal.py       `poolkit destroy`
"""
