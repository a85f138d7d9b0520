"""HTML forms, filled in as a browser does it: for users that register and log in before their tasks.

from poolkit.loadtest import submit_form

def on_start(self) -> None:
    submit_form(self.client, "/login", {"username": "load", "password": "test"})
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from poolkit.errors import FormError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class _Form:
    action: str
    fields: list[dict[str, str]] = field(default_factory=list)
    """The attributes of each named element, `type` in any case."""

    @property
    def has_password(self) -> bool:
        return any(each["type"] == "password" for each in self.fields)

    def filled(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return what a browser would send after a user typed the values."""
        data: dict[str, str] = {}
        is_submitted = False
        for each in self.fields:
            kind, name, value = each["type"], each["name"], each.get("value", "")
            if kind == "submit":
                # Only the button that was pressed is sent.
                if not is_submitted:
                    data[name] = value
                is_submitted = True
            elif kind in ("checkbox", "radio"):
                if {"checked", "required"} & each.keys():
                    data[name] = value or "on"
            elif kind not in ("button", "reset", "image", "file"):
                data[name] = value if kind == "hidden" else self._typed(name, kind, values) or value
        return data

    def _typed(self, name: str, kind: str, values: Mapping[str, str]) -> str:
        """Return the value of a field by its name, or by what it is for."""
        if name in values:
            return values[name]
        if kind == "password":
            return values.get("password", "")
        if kind == "email" or "email" in name.lower():
            return values.get("email", "")
        if "user" in name.lower() or "login" in name.lower():
            return values.get("username", "")
        return ""


class _Forms(HTMLParser):
    """The forms of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Form] = []
        self._is_inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._is_inside = True
            self.found.append(_Form(attributes.get("action", "")))
        elif self._is_inside and tag in ("input", "button", "textarea") and attributes.get("name"):
            default = "submit" if tag == "button" else "text"
            kind = attributes.get("type", default).lower()
            self.found[-1].fields.append({**attributes, "type": kind})

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._is_inside = False


def submit_form(client: Any, path: str, values: Mapping[str, str]) -> None:
    """Fetch a page, fill in its form, and send it.

    The form is the one with a password, else the first. Hidden fields keep their values, such as a
    CSRF token. Every other field takes the value of its own name. A field without one takes
    `password`, `email` or `username` by what it is for, so that a repeated password needs no key.

    Args:
        client: the client of a Locust user, which keeps the cookies.
        path: of the page.
        values: what to fill in, by the names of the fields.

    Raises:
        FormError: the page has no form, or the answer has the same form again.
    """
    page = client.get(path)
    form = _form_of(page.text or "")
    if form is None:
        raise FormError(
            f"{path}: wanted a page with a form, found none (status {page.status_code})"
        )
    target = urlsplit(urljoin(page.url or path, form.action or path))
    address = urlunsplit(("", "", target.path, target.query, ""))
    answer = client.post(address, data=form.filled(values), name=path)
    again = _form_of(answer.text or "")
    is_same_page = urlsplit(answer.url or "").path == urlsplit(page.url or "").path
    if answer.status_code >= 400 or (is_same_page and again is not None and again.has_password):
        names = ", ".join(each["name"] for each in form.fields)
        raise FormError(
            f"{path}: the form was not accepted (status {answer.status_code}); its fields are {names}: "
            "give a value for each that it needs"
        )


def _form_of(text: str) -> _Form | None:
    page = _Forms()
    page.feed(text)
    return next((form for form in page.found if form.has_password), next(iter(page.found), None))
