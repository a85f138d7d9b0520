"""AWS SAM templates, expanded into CloudFormation by AWS's own translator."""

from __future__ import annotations

import copy
import json
import logging
from typing import TYPE_CHECKING, Any

from poolkit.errors import BudgetError, TemplateError, how_to_install

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.budget.read.documents import Document

TRANSFORM = "AWS::Serverless-2016-10-31"
# The translator wants what `sam package` writes; where the code is does not matter here.
_PLACEHOLDER = "s3://bucket/key"
_LOCAL_CODE = {
    "AWS::Serverless::Function": ("CodeUri",),
    "AWS::Serverless::LayerVersion": ("ContentUri",),
    "AWS::Serverless::Api": ("DefinitionUri",),
    "AWS::Serverless::HttpApi": ("DefinitionUri",),
    "AWS::Serverless::StateMachine": ("DefinitionUri",),
}


def is_sam(template: Mapping[str, Any]) -> bool:
    """Tell whether a template names the SAM transform."""
    named = template.get("Transform") or []
    return TRANSFORM in (named if isinstance(named, list) else [named])


def expand(document: Document, parameters: Mapping[str, Any], region: str) -> dict[str, Any]:
    """Return the CloudFormation template that a SAM template stands for.

    Raises:
        BudgetError: aws-sam-translator is not installed.
        TemplateError: SAM refuses the template; with its first reason.
    """
    try:
        import boto3  # noqa: PLC0415  (only templates with the transform need these two)
        from samtranslator.model.exceptions import (  # noqa: PLC0415
            ExceptionWithMessage,
            InvalidDocumentException,
        )
        from samtranslator.parser.parser import Parser  # noqa: PLC0415
        from samtranslator.translator.translator import Translator  # noqa: PLC0415
    except ImportError:
        raise BudgetError(
            f"{document.file} is a SAM template, which needs: {how_to_install('infra')}"
        ) from None
    logging.getLogger("samtranslator").setLevel(logging.CRITICAL)
    session = boto3.session.Session(region_name=region or "us-east-1")
    translator = Translator({}, Parser(), boto_session=session)
    template = _packaged(document.data)
    try:
        expanded = translator.translate(template, dict(parameters))
    except InvalidDocumentException as error:
        raise TemplateError(_refusal(document, error)) from None
    except ExceptionWithMessage as error:
        raise TemplateError(f"{document.file}: SAM refuses it: {error.message}") from None
    # The translator's own string and dict types are nobody's business.
    result: dict[str, Any] = json.loads(json.dumps(expanded))
    return result


def _packaged(data: Any) -> Any:
    template = copy.deepcopy(data)
    # A function that is not there at all is an image's; one without code is not accepted.
    for resource in (template.get("Resources") or {}).values():
        if not isinstance(resource, dict):
            continue
        properties = resource.get("Properties")
        for name in _LOCAL_CODE.get(str(resource.get("Type")), ()):
            if isinstance(properties, dict) and isinstance(properties.get(name), str):
                properties[name] = _PLACEHOLDER
    in_globals = (template.get("Globals") or {}).get("Function")
    if isinstance(in_globals, dict) and isinstance(in_globals.get("CodeUri"), str):
        in_globals["CodeUri"] = _PLACEHOLDER
    return template


def _refusal(document: Document, error: Any) -> str:
    """Name the resource's line: SAM knows its logical id."""
    causes = list(getattr(error, "causes", None) or [error])
    first = causes[0]
    logical_id = getattr(first, "_logical_id", None)
    where = document.where("Resources", logical_id) if logical_id else document.where()
    return f"{where}: SAM refuses it: {getattr(first, 'message', first)}"
