"""What people type into server-rendered pages."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth import authenticate
from django.http import HttpRequest

from sandboxes.models import User


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
