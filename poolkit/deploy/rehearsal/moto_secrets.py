"""Secrets of Secrets Manager as resources of a stack, which moto does not make.

AWS CloudFormation Template Reference, AWS::SecretsManager::Secret: `Ref` is the ARN;
GenerateSecretString puts a random password beside the keys of its template, and makes another
password when it changes.
"""

import json

from moto.secretsmanager.models import secretsmanager_backends

TYPE = "AWS::SecretsManager::Secret"


class StackSecret:
    """A secret that a stack made.

    Not a subclass of moto's CloudFormationModel: moto would find it, and the gap would be filled
    where nothing was to fill it.
    """

    is_created = staticmethod(lambda: True)
    has_cfn_attr = classmethod(lambda cls, attribute: False)

    def __init__(self, arn, properties):
        self.arn = arn
        self.properties = properties

    @property
    def physical_resource_id(self):
        """The ARN, as AWS has it."""
        return self.arn

    @staticmethod
    def cloudformation_name_type():
        """Return the property with the name."""
        return "Name"

    @staticmethod
    def cloudformation_type():
        """Return the type."""
        return TYPE

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name, cloudformation_json, account_id, region_name, **kwargs
    ):
        """Make the secret with its value."""
        properties = cloudformation_json.get("Properties", {})
        backend = secretsmanager_backends[account_id][region_name]
        made = backend.create_secret(
            name=properties.get("Name") or resource_name,
            secret_string=_value(backend, properties),
            secret_binary=None,
            description=properties.get("Description"),
            tags=None,
            kms_key_id=properties.get("KmsKeyId"),
            client_request_token=None,
            replica_regions=[],
            force_overwrite=False,
        )
        return cls(json.loads(made)["ARN"], properties)

    @classmethod
    def update_from_cloudformation_json(
        cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name
    ):
        """Make another value if it is generated in another way."""
        properties = cloudformation_json.get("Properties", {})
        names = ("GenerateSecretString", "SecretString")
        before = original_resource.properties
        if any(properties.get(name) != before.get(name) for name in names):
            backend = secretsmanager_backends[account_id][region_name]
            value = _value(backend, properties)
            backend.put_secret_value(original_resource.arn, value, None, None, ["AWSCURRENT"])
        return cls(original_resource.arn, properties)

    @classmethod
    def delete_from_cloudformation_json(
        cls, resource_name, cloudformation_json, account_id, region_name
    ):
        """Delete the secret without a recovery window."""
        secretsmanager_backends[account_id][region_name].delete_secret(resource_name, None, True)


def _value(backend, properties):
    if "GenerateSecretString" not in properties:
        return properties.get("SecretString", "")
    wanted = properties["GenerateSecretString"]
    answer = backend.get_random_password(
        password_length=int(wanted.get("PasswordLength", 32)),
        exclude_characters=wanted.get("ExcludeCharacters", ""),
        exclude_numbers=_is_true(wanted.get("ExcludeNumbers", False)),
        exclude_punctuation=_is_true(wanted.get("ExcludePunctuation", False)),
        exclude_uppercase=_is_true(wanted.get("ExcludeUppercase", False)),
        exclude_lowercase=_is_true(wanted.get("ExcludeLowercase", False)),
        include_space=_is_true(wanted.get("IncludeSpace", False)),
        require_each_included_type=_is_true(wanted.get("RequireEachIncludedType", True)),
    )
    password = json.loads(answer)["RandomPassword"]
    if "GenerateStringKey" not in wanted:
        return password
    return json.dumps(
        json.loads(wanted["SecretStringTemplate"]) | {wanted["GenerateStringKey"]: password}
    )


def _is_true(value):
    return str(value).lower() == "true"


def with_secrets(class_of):
    """Return moto's choice of a class for a type, with this one for secrets."""
    return lambda kind: StackSecret if kind == TYPE else class_of(kind)
