"""Text without the secrets of its URLs: passwords, and queries, which may hold a signature."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"://[^/\s]*@")
_QUERY = re.compile(r"(://[^\s?]*)\?[^\s'\")]*")


def redacted(text: str) -> str:
    """Return text with the passwords and the queries of its URLs left out."""
    return _QUERY.sub(r"\1?***", _PASSWORD.sub("://***@", text))
