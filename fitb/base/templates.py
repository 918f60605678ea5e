"""Jinja2 templates of the package: text, and HTML pages without network access."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError, SystemFault
from fitb.base.fsio import write_atomic

_MARK = b"content=\"default-src 'none'; style-src 'unsafe-inline'\""  # of page.html.j2
_HEAD_BYTES = 1000


def render_template(name: str, **values: Any) -> str:
    """Render a template; values are escaped in HTML, because corpus text may contain markup.

    Args:
        name: path of the template in the package; HTML pages extend page.html.j2.
        values: variables of the template.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fitb", ""),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(values)


def write_page(path: Path, page: str) -> None:
    """Write an HTML page atomically; only a page that fitb wrote is replaced.

    Raises: ConfigError if another file exists there; SystemFault if it cannot be written.
    """
    try:
        if path.is_symlink() or path.exists():
            head = path.read_bytes()[:_HEAD_BYTES]
            if head and not (head.startswith(b"<!DOCTYPE html>") and _MARK in head):
                raise ConfigError(
                    f"{path} is not a page that fitb wrote; move it away, or use another file"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page + "\n")
    except OSError as error:
        raise SystemFault(
            f"cannot write {path}: {error.strerror}; use a file in a folder that you may write"
        ) from error
