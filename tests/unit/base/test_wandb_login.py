"""Server, mode and key against those that wandb itself finds."""

import os

import pytest
import wandb
from wandb.sdk.lib.wbauth.wbnetrc import read_netrc_auth

from fitb.base.wandb_login import Login, login_of

KEY = "k" * 40
CLOUD, OWN = "https://api.wandb.ai", "https://wandb.example.org:8443"


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def netrc(path, *machines):
    path.write_text("".join(f"machine {name} login user password {KEY}\n" for name in machines))
    path.chmod(0o600)


def settings(path, **values):
    path.parent.mkdir(parents=True)
    path.write_text("[default]\n" + "".join(f"{k} = {v}\n" for k, v in values.items()))


def as_wandb_has_it(login):
    held = wandb.setup().settings
    key = "WANDB_API_KEY" if held.api_key else "netrc" if read_netrc_auth(host=login.url) else ""
    wandb.teardown()
    assert login == Login(held.base_url, held.mode if login.mode else "", key)


SERVERS = (None, CLOUD, OWN)
PLACES = (".netrc", "_netrc", "elsewhere")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("machine", ["api.wandb.ai", "wandb.example.org:8443"])
def test_a_login_counts_for_the_server_that_is_asked(home, monkeypatch, server, place, machine):
    """It was looked for under the public server's name alone, and in the home directory alone."""
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    if place == "elsewhere":
        monkeypatch.setenv("NETRC", str(home / place))
    netrc(home / place, machine)
    login = login_of(os.environ)
    assert login.mode_of("auto") == ("online" if machine in (server or CLOUD) else "offline")
    as_wandb_has_it(login)


@pytest.mark.parametrize(
    "place", [".config/wandb/settings", "other/settings", "work/wandb/settings"]
)
def test_server_and_mode_of_the_settings_files_count(home, monkeypatch, place):
    if place.startswith("other"):
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "other"))
    settings(home / place, base_url=OWN, mode="offline")
    netrc(home / ".netrc", "wandb.example.org:8443")
    login = login_of(os.environ)
    assert (login.url, login.mode_of("auto"), login.mode_of("online")) == (OWN, "offline", "online")
    as_wandb_has_it(login)


@pytest.mark.parametrize(
    ("env", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": KEY}, "online"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "disabled"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, "offline"),
    ],
)
def test_auto_is_what_the_environment_says_else_online_where_there_is_a_key(
    home, monkeypatch, env, mode
):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    login = login_of(os.environ)
    assert login.mode_of("auto") == mode
    assert [login.mode_of(one) for one in ("online", "offline")] == ["online", "offline"]


@pytest.mark.parametrize("text", ["this is no netrc\n", f"machine api.wandb.ai {KEY}\n", "\0\xff"])
def test_a_damaged_netrc_is_no_login(home, text):
    (home / ".netrc").write_text(text, encoding="latin-1")
    assert login_of(os.environ).key == ""
    settings(home / ".config/wandb/settings", mode="offline")
    (home / ".config/wandb/settings").write_text("no section\n")
    assert login_of(os.environ).mode == ""
