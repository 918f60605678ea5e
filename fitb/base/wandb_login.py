"""W&B server, mode and API key of this user, as W&B itself resolves them."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Login:
    """The resolved W&B login.

    Args:
        url: URL of the server.
        mode: mode from W&B's environment or settings files; empty if none is set.
        key: source of an API key for the server, "WANDB_API_KEY" or "netrc"; empty if none.
    """

    url: str
    mode: str
    key: str

    def mode_of(self, wanted: str) -> str:
        """Resolve `auto`: W&B's own mode if set, else online with a key, else offline."""
        if wanted != "auto":
            return wanted
        return self.mode or ("online" if self.key else "offline")


def login_of(env: Mapping[str, str]) -> Login:
    """Resolve server, mode and key; importing wandb takes about a second.

    Args:
        env: environment variables of this process.
    Raises: ImportError without wandb, and what wandb raises for its own settings.
    """
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import urls

    try:
        settings = wandb_setup.singleton().settings
        url, mode = str(settings.base_url), str(settings.mode)
    finally:
        wandb.teardown()  # a later wandb.init reads its settings anew
    if mode == "online" and not env.get("WANDB_MODE"):  # its default
        mode = ""
    servers = (urlsplit(url).netloc, urlsplit(urls.forge_upstream_url(url)).netloc)
    if env.get("WANDB_API_KEY"):
        return Login(url, mode, "WANDB_API_KEY")
    return Login(url, mode, "netrc" if any(_in_netrc(env, one) for one in servers) else "")


def _in_netrc(env: Mapping[str, str], server: str) -> bool:
    """Whether netrc has a key; W&B's own reader would log a damaged line with its secret."""
    named = (env["NETRC"],) if env.get("NETRC") else ("~/.netrc", "~/_netrc")
    for path in (Path(name).expanduser() for name in named):
        if not path.exists():
            continue
        try:
            found = netrc.netrc(path).authenticators(server)
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
            return False
        return bool(found and found[2])
    return False
