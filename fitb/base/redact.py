"""Removal of secrets from URLs: passwords, and queries, which may contain signatures."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"://[^/\s]*@")
_QUERY = re.compile(r"(://[^\s?]*)\?[^\s'\")]*")


def redacted(text: str) -> str:
    """Return text with *** for the passwords and queries of its URLs."""
    return _QUERY.sub(r"\1?***", _PASSWORD.sub("://***@", text))
