"""Jinja2 templates of the package as text, or as HTML pages that load nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError, SystemFault
from fitb.base.fsio import write_atomic

_MARK = b"content=\"default-src 'none'; style-src 'unsafe-inline'\""  # of page.html.j2
_HEAD_BYTES = 1000


def render_template(name: str, **values: Any) -> str:
    """Render a template; in HTML every value is escaped, for text of a corpus may hold markup.

    Args:
        name: its path in the package; pages extend page.html.j2.
        values: that it shows.
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
    """Write a page whole, where there is no file or one of fitb's pages.

    Raises: ConfigError where another file is there; SystemFault where it cannot be written.
    """
    try:
        if path.is_symlink() or path.exists():
            head = path.read_bytes()[:_HEAD_BYTES]
            if head and not (head.startswith(b"<!DOCTYPE html>") and _MARK in head):
                raise ConfigError(
                    f"{path} is not a page that fitb wrote; move it away, or name another file"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page + "\n")
    except OSError as error:
        raise SystemFault(
            f"cannot write {path}: {error.strerror}; name a file in a folder of yours"
        ) from error
