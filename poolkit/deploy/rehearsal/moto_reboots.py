"""RDS's static parameters and pending reboots, which moto does not know.

Filled in as documented: Amazon RDS User Guide, "Parameter groups for Amazon RDS" (a change of a
static parameter leaves the instances at pending-reboot until each is rebooted), and CloudFormation's
handlers of AWS::RDS::DBParameterGroup (an update modifies the group) and AWS::RDS::DBInstance (an
update reboots an instance that is pending).
"""

import copy

from moto.cloudformation import parsing
from moto.rds.models import DBInstance, DBParameterGroup, RDSBackend, rds_backends

STATIC = frozenset({"max_connections", "shared_preload_libraries"})
"""The static parameters among those that templates set."""


def fill_static_parameters(monkeypatch):
    _fill_groups(monkeypatch)
    _fill_instances(monkeypatch)


def _fill_groups(monkeypatch):
    merge, modify = DBParameterGroup.update_parameters, RDSBackend.modify_db_parameter_group

    def update_parameters(self, new_parameters):
        merge(
            self,
            [each | {"ParameterValue": str(each["ParameterValue"])} for each in new_parameters],
        )
        for name in {*STATIC, *self.parameters}:
            kind = "static" if name in STATIC else "dynamic"
            self.parameters[name] |= {"ParameterName": name, "ApplyType": kind}

    def modify_db_parameter_group(self, name, parameters):
        before = _static_values(self.db_parameter_groups[name])
        modified = modify(self, name, parameters)
        for instance in self.databases.values():
            names = {group.name for group in instance.db_parameter_groups()}
            if name in names and _static_values(modified) != before:
                instance.is_pending_reboot = True
        return modified

    def update_from_cloudformation_json(
        cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name
    ):
        values = cloudformation_json["Properties"].get("Parameters", {})
        parameters = [{"ParameterName": k, "ParameterValue": v} for k, v in values.items()]
        backend = rds_backends[account_id][region_name]
        backend.modify_db_parameter_group(original_resource.name, parameters)
        return original_resource

    monkeypatch.setattr(DBParameterGroup, "update_parameters", update_parameters)
    monkeypatch.setattr(RDSBackend, "modify_db_parameter_group", modify_db_parameter_group)
    update = classmethod(update_from_cloudformation_json)
    monkeypatch.setattr(DBParameterGroup, "update_from_cloudformation_json", update)
    name = property(lambda self: self.name)
    monkeypatch.setattr(DBParameterGroup, "physical_resource_id", name, raising=False)


def _static_values(group):
    return {name: group.parameters[name].get("ParameterValue") for name in STATIC}


def _fill_instances(monkeypatch):
    reboot, update = RDSBackend.reboot_db_instance, parsing.parse_and_update_resource

    def reboot_db_instance(self, db_instance_identifier):
        instance = reboot(self, db_instance_identifier)
        instance.is_pending_reboot = False
        return instance

    def update_resource(logical_id, declared, resources, *account, **where):
        before = resources._parsed_resources.get(logical_id)
        updated = update(logical_id, declared, resources, *account, **where)
        if isinstance(before, DBInstance):
            before.is_pending_reboot = False
        return updated

    def statuses(self):
        # Copies, because instances share a group, and each has a status of its own.
        groups = [copy.copy(group) for group in self.db_parameter_groups()]
        for group in groups:
            is_pending = getattr(self, "is_pending_reboot", False)
            group.ParameterApplyStatus = "pending-reboot" if is_pending else "in-sync"
        return groups

    monkeypatch.setattr(RDSBackend, "reboot_db_instance", reboot_db_instance)
    monkeypatch.setattr(parsing, "parse_and_update_resource", update_resource)
    monkeypatch.setattr(DBInstance, "db_parameter_group_status_list", property(statuses))
