"""Which W&B a run goes to, and whether this user has a key for it, as W&B itself finds out."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Login:
    """What W&B would do of itself.

    Args:
        url: of the server.
        mode: that W&B was told, by its environment or settings files; empty where it was not.
        key: where there is a key for the server, "WANDB_API_KEY" or "netrc"; else empty.
    """

    url: str
    mode: str
    key: str

    def mode_of(self, wanted: str) -> str:
        """Resolve `auto`: as W&B was told, else online where there is a key, else offline."""
        if wanted != "auto":
            return wanted
        return self.mode or ("online" if self.key else "offline")


def login_of(env: Mapping[str, str]) -> Login:
    """Look up server, mode and key; takes the second that wandb takes to be imported.

    Args:
        env: of this process.
    Raises: ImportError, and whatever W&B does about its own settings.
    """
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import urls

    try:
        settings = wandb_setup.singleton().settings
        url, mode = str(settings.base_url), str(settings.mode)
    finally:
        wandb.teardown()  # nothing was started; what follows reads its settings itself
    if mode == "online" and not env.get("WANDB_MODE"):  # its default
        mode = ""
    servers = (urlsplit(url).netloc, urlsplit(urls.forge_upstream_url(url)).netloc)
    if env.get("WANDB_API_KEY"):
        return Login(url, mode, "WANDB_API_KEY")
    return Login(url, mode, "netrc" if any(_in_netrc(env, one) for one in servers) else "")


def _in_netrc(env: Mapping[str, str], server: str) -> bool:
    """Whether netrc has a key; W&B's own function would quote a damaged line of it."""
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
