"""What CloudFormation refuses by a stack's status, and ECR's layers, as AWS documents them.

Written from the API Reference, and apart from the table that `poolkit` follows: a rule that both
got from one place would prove nothing.
"""

import json
from urllib.parse import urlsplit

from moto.cloudformation import responses
from moto.cloudformation.exceptions import CloudFormationError, ValidationError
from moto.cloudformation.models import Stack
from moto.cloudformation.responses import CloudFormationResponse
from moto.core.responses import ActionResult
from moto.ecr.responses import ECRResponse

LAYER_BUCKET = "layers-of-the-registry"
"""The bucket of moto's that holds the layers of images; ECR has a bucket of its own."""

UPDATABLE = frozenset(
    {
        "CREATE_COMPLETE",
        "UPDATE_COMPLETE",
        "UPDATE_ROLLBACK_COMPLETE",
        "IMPORT_COMPLETE",
        "IMPORT_ROLLBACK_COMPLETE",
    }
)
"""API Reference, RollbackStack: the "last known stable state" of a stack. An update of a stack in
CREATE_FAILED or UPDATE_FAILED is possible with its rollback disabled only."""

DELETABLE_IN_PROGRESS = frozenset(
    {"CREATE_IN_PROGRESS", "DELETE_IN_PROGRESS", "REVIEW_IN_PROGRESS"}
)
"""In any other operation DeleteStack is refused: "cannot be deleted while in status"."""

ROLL_BACK_FROM = {
    "cancel_update_stack": frozenset({"UPDATE_IN_PROGRESS"}),
    "rollback_stack": frozenset({"CREATE_FAILED", "UPDATE_FAILED"}),
    "continue_update_rollback": frozenset({"UPDATE_ROLLBACK_FAILED"}),
}
"""API Reference, the actions of these names."""


class ChangeSetNotFound(CloudFormationError):  # noqa: D101
    code = "ChangeSetNotFound"


class InvalidChangeSetStatus(CloudFormationError):  # noqa: D101
    code = "InvalidChangeSetStatus"


def require_updatable(stack):
    if stack.status not in UPDATABLE:
        raise ValidationError(
            message=f"Stack:{stack.stack_id} is in {stack.status} state and can not be updated."
        )


def require_change_set_type(stack, stack_name, change_set_name, kind):
    """Refuse CREATE for a stack that exists, and UPDATE for one that does not, or may not."""
    if kind == "CREATE":
        if stack is not None and stack.status != "REVIEW_IN_PROGRESS":
            raise ValidationError(
                message=f"Stack [{stack_name}] already exists and cannot be created again with the "
                f"changeSet [{change_set_name}]."
            )
    elif stack is None:
        raise ValidationError(message=f"Stack [{stack_name}] does not exist")
    else:
        require_updatable(stack)


def require_executable(backend, change_set_name):
    """Return a change set that may be executed; the others of its stack are deleted with it."""
    found = [
        each
        for id_, each in backend.change_sets.items()
        if change_set_name in {id_, each.change_set_name} and each.stack_id in backend.stacks
    ]
    if not found:
        raise ChangeSetNotFound(f"ChangeSet [{change_set_name}] does not exist")
    change_set = found[0]
    if change_set.execution_status != "AVAILABLE":
        raise InvalidChangeSetStatus(
            f"ChangeSet [{change_set.change_set_id}] cannot be executed in its current execution "
            f"status of [{change_set.execution_status}]"
        )
    stack = change_set.stack
    if change_set.change_set_type != "CREATE" or stack.status != "REVIEW_IN_PROGRESS":
        require_updatable(stack)
    for id_, other in list(backend.change_sets.items()):
        if other is not change_set and other.stack is stack:
            del backend.change_sets[id_]
    change_set.execution_status = "EXECUTE_IN_PROGRESS"
    return change_set


def require_deletable(stack, retain):
    if stack.enable_termination_protection:
        raise ValidationError(
            message=f"Stack [{stack.name}] cannot be deleted while TerminationProtection is enabled"
        )
    if stack.status.endswith("_IN_PROGRESS") and stack.status not in DELETABLE_IN_PROGRESS:
        raise ValidationError(
            message=f"Stack [{stack.stack_id}] cannot be deleted while in status {stack.status}"
        )
    if not retain:
        return
    if stack.status != "DELETE_FAILED":
        raise ValidationError(
            message=f"Invalid operation on stack [{stack.stack_id}]. When you delete a stack, "
            "specify which resources to retain only when the stack is in the DELETE_FAILED state."
        )
    for name in retain:
        if status_of_resource(stack, name) != "DELETE_FAILED":
            raise ValidationError(
                message="The specified resources to retain must be in a valid state. Do not "
                "specify resources that are in the DELETE_COMPLETE state."
            )


def require_roll_back(stack, action, skip):
    if stack.status not in ROLL_BACK_FROM[action]:
        raise ValidationError(
            message=f"Stack:{stack.stack_id} is in {stack.status} state: {action} is refused"
        )
    for name in skip:
        if status_of_resource(stack, name) != "UPDATE_FAILED":
            raise ValidationError(
                message=f"Resource [{name}] cannot be skipped: it is not in UPDATE_FAILED"
            )


# -- the status of a resource ---------------------------------------------------------------


def mark(stack, logical_id, status):
    """Give a resource of a stack another status than moto's CREATE_COMPLETE."""
    stack.__dict__.setdefault("resource_statuses", {})[logical_id] = status


def status_of_resource(stack, logical_id):
    known = stack.__dict__.get("resource_statuses", {})
    exists = logical_id in stack.resource_map._resource_json_map
    return known.get(logical_id, "CREATE_COMPLETE" if exists else "")


def _list_stack_resources(list_resources):
    def list_stack_resources(self):
        stack = self.cloudformation_backend.get_stack(self._get_param("StackName"))
        result = list_resources(self)
        for each in result.result["StackResourceSummaries"]:
            each["ResourceStatus"] = status_of_resource(stack, each["LogicalResourceId"])
        return result

    return list_stack_resources


# -- metadata -------------------------------------------------------------------------------


def _without_metadata(template):
    return {key: value for key, value in template.items() if key != "Metadata"}


def _has_template(self, other):
    """Metadata alone is no change (User Guide, Template Metadata section)."""
    self._parse_template()
    return _without_metadata(self.template_dict) == _without_metadata(self.parse_template(other))


def _summary(summarise):
    def summary(body):
        found = summarise(body)
        if "Metadata" in found:
            found["Metadata"] = json.dumps(found["Metadata"])
        return found

    return summary


def _parameter_list(self):
    """Secret parameters are masked by their name, and a list is one text with commas."""
    secret = self.resource_map.no_echo_parameter_keys
    values = {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in self.resource_map.resolved_parameters.items()
    }
    return [
        {"ParameterKey": name, "ParameterValue": "****" if name in secret else value}
        for name, value in values.items()
    ]


def fill(monkeypatch):
    monkeypatch.setattr(Stack, "parameter_list", property(_parameter_list))
    monkeypatch.setattr(Stack, "has_template", _has_template)
    name = "get_template_summary_response_from_template"
    monkeypatch.setattr(responses, name, _summary(getattr(responses, name)))
    listed = _list_stack_resources(CloudFormationResponse.list_stack_resources)
    monkeypatch.setattr(CloudFormationResponse, "list_stack_resources", listed)
    monkeypatch.setattr(CloudFormationResponse, "list_change_sets", _list_change_sets)
    monkeypatch.setattr(CloudFormationResponse, "delete_stack", _delete_stack)
    monkeypatch.setattr(ECRResponse, "get_download_url_for_layer", _get_download_url_for_layer)


def _get_download_url_for_layer(self):
    digest = self._get_param("layerDigest")
    # ECR returns a pre-signed URL, which needs no credentials.
    url = f"{urlsplit(self.uri).scheme}://{self.headers['Host']}/{LAYER_BUCKET}"
    return ActionResult({"layerDigest": digest, "downloadUrl": f"{url}/{digest.replace(':', '-')}"})


def _list_change_sets(self):
    stack = self.cloudformation_backend.get_stack(self._get_param("StackName"))
    found = [
        {
            "StackId": stack.stack_id,
            "StackName": stack.name,
            "ChangeSetId": id_,
            "ChangeSetName": each.change_set_name,
            "Status": each.status,
            "ExecutionStatus": each.execution_status,
        }
        for id_, each in self.cloudformation_backend.change_sets.items()
        if each.stack is stack
    ]
    return ActionResult({"Summaries": found})


def _delete_stack(self):
    retain = self._get_param("RetainResources", [])
    self.cloudformation_backend.delete_stack(self._get_param("StackName"), retain)
    return ActionResult({})
