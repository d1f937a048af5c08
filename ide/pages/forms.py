"""What people type into server-rendered pages."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth import authenticate
from django.http import HttpRequest
from django.utils.text import slugify

from sandboxes.errors import DomainError
from sandboxes.models import Organization, User


class SignInForm(forms.Form):
    """Email and password; `user` is set once they fit."""

    email = forms.EmailField(max_length=254)
    password = forms.CharField(max_length=1000, strip=False)

    user: User | None = None

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request = request

    def clean(self) -> dict[str, Any]:
        """Check both together, so that nothing tells which of them was wrong."""
        data: dict[str, Any] = super().clean() or {}
        if data.get("email") and data.get("password"):
            email = data["email"].lower()
            found = authenticate(self.request, username=email, password=data["password"])
            self.user = found if isinstance(found, User) else None
            if self.user is None:
                raise forms.ValidationError("That email address and password do not fit together.")
        return data


class PatternsInput(forms.Textarea):
    """Patterns of hosts, one in each line."""

    def __init__(self) -> None:
        attributes = {"class": "input mono", "rows": 4, "spellcheck": "false", "autocapitalize": "none", "wrap": "off"}
        super().__init__(attributes)


class OrganizationForm(forms.Form):
    """What an organization is called."""

    name = forms.CharField(max_length=100, widget=forms.TextInput({"autocomplete": "organization"}))


class SpendingForm(forms.Form):
    """What may be spent in a calendar month; empty: as much as the limits allow."""

    spending_cap = forms.DecimalField(
        label="Spending cap",
        required=False,
        min_value=0,
        max_digits=12,
        decimal_places=2,
        widget=forms.NumberInput({"step": "0.01", "inputmode": "decimal", "placeholder": "No cap"}),
    )


class NetworkForm(forms.Form):
    """What an organization's sandboxes may reach: patterns, one in each line."""

    mode = forms.ChoiceField(
        label="New sandboxes reach, where nobody says",
        choices=[("all", "Every public host"), ("listed", "Only the hosts below")],
    )
    allow_net = forms.CharField(label="Allowed", required=False, max_length=600_000, widget=PatternsInput())
    deny_net = forms.CharField(
        label="Always denied",
        required=False,
        max_length=600_000,
        widget=PatternsInput(),
        help_text="To all sandboxes of the organization, whatever their own lists say, and at once. One pattern in "
        "each line: example.com, *.example.com, example.com:443, 192.0.2.7, 198.51.100.0/24.",
    )

    def allowed(self) -> list[str] | None:
        """None where every public host is."""
        return _lines(self.cleaned_data["allow_net"]) if self.cleaned_data["mode"] == "listed" else None

    def denied(self) -> list[str]:
        """What is always denied."""
        return _lines(self.cleaned_data["deny_net"])

    @classmethod
    def of(cls, organization: Organization) -> NetworkForm:
        """What is stored."""
        return cls(
            initial={
                "mode": "all" if organization.allow_net is None else "listed",
                "allow_net": "\n".join(organization.allow_net or ()),
                "deny_net": "\n".join(organization.deny_net),
            }
        )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


class NewOrganizationForm(OrganizationForm):
    """A name, and a slug that is made of it where none is given."""

    name = forms.CharField(
        max_length=100, widget=forms.TextInput({"autocomplete": "off", "autofocus": True, "placeholder": "Tide Lab"})
    )
    slug = forms.CharField(
        label="Short name",
        required=False,
        max_length=40,
        help_text="What programs call it: a-z, 0-9 and hyphens, such as tide-lab. "
        "It is made of the name if you leave it empty, and cannot be changed later.",
        widget=forms.TextInput({"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}),
    )

    def clean(self) -> dict[str, Any]:
        """Fill in the slug."""
        data: dict[str, Any] = super().clean() or {}
        if data.get("name") and not data.get("slug"):
            data["slug"] = slugify(data["name"])[:40].strip("-")
            if not data["slug"]:
                self.add_error("slug", "The name has no letters a-z to make it of: please choose one.")
        return data


class SshKeyForm(forms.Form):
    """A public key, and what to call it."""

    public_key = forms.CharField(
        label="Public key",
        max_length=20_000,
        help_text="One line, such as the one in ~/.ssh/id_ed25519.pub.",
        widget=forms.Textarea(
            {"class": "input mono", "rows": 3, "spellcheck": "false", "placeholder": "ssh-ed25519 AAAA… you@laptop"}
        ),
    )
    name = forms.CharField(
        required=False,
        max_length=100,
        help_text="Its comment, if you leave this empty.",
        widget=forms.TextInput({"autocomplete": "off"}),
    )
    authority = forms.BooleanField(
        label="It is an authority",
        required=False,
        help_text="Certificates that it signs log in as you; the key itself does not.",
    )


def refused(form: forms.Form, error: DomainError) -> None:
    """Show the domain's objection beside the field that it is about."""
    field = error.fields.get("field")
    sentence = error.message[:1].upper() + error.message[1:]
    form.add_error(field if field in form.fields else None, f"{sentence}.")
