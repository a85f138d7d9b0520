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
# The translator accepts only what `sam package` writes; the place of the code is irrelevant here.
_PLACEHOLDER = "s3://bucket/key"
_LOCAL_CODE = {
    "AWS::Serverless::Function": "CodeUri",
    "AWS::Serverless::LayerVersion": "ContentUri",
    "AWS::Serverless::Api": "DefinitionUri",
    "AWS::Serverless::HttpApi": "DefinitionUri",
    "AWS::Serverless::StateMachine": "DefinitionUri",
}


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
    template = copy.deepcopy(document.data)
    code = [
        (each.get("Properties"), _LOCAL_CODE.get(str(each.get("Type")), ""))
        for each in (template.get("Resources") or {}).values()
        if isinstance(each, dict)
    ]
    code.append(((template.get("Globals") or {}).get("Function"), "CodeUri"))
    for properties, name in code:
        # A function without code is an image's; SAM refuses one that has neither.
        if isinstance(properties, dict) and isinstance(properties.get(name), str):
            properties[name] = _PLACEHOLDER
    try:
        expanded = translator.translate(template, dict(parameters))
    except InvalidDocumentException as error:
        first = next(iter(error.causes or []), error)
        logical_id = getattr(first, "_logical_id", None)
        where = document.where("Resources", logical_id) if logical_id else document.where()
        message = getattr(first, "message", first)
        raise TemplateError(f"{where}: SAM refuses it: {message}") from None
    except ExceptionWithMessage as error:
        raise TemplateError(f"{document.file}: SAM refuses it: {error.message}") from None
    # The translator has string and dict types of its own.
    result: dict[str, Any] = json.loads(json.dumps(expanded))
    return result
