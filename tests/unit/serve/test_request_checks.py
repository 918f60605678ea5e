"""Bodies, media types, tokens and hosts that are refused, and what a refusal does not give away."""

import asyncio

import pytest

pytest.importorskip("fastapi")
from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import Request

from fitb.base.errors import ConfigError
from fitb.serve.request_checks import (
    TOKEN_VARIABLE,
    Token,
    check_host,
    check_media_type,
    hosts_of,
    read_body,
    read_token,
)
from fitb.serve.serve_config import ServeConfig

SECRET = "correct-horse-battery"


def request(parts=(), **headers):
    """A request whose body comes in parts, None standing for a closed connection."""
    messages = iter(
        {"type": "http.disconnect"}
        if part is None
        else {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    )

    async def receive():
        return next(messages)

    raw = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return Request({"type": "http", "headers": raw}, receive)


def refusal(call):
    """The error that a call, or a coroutine, raises."""
    with pytest.raises(HTTPException) as refused:
        asyncio.run(call) if asyncio.iscoroutine(call) else call()
    return refused.value


@pytest.mark.parametrize("parts", [[b""], [b"0123456789"], [b"0123", b"", b"456789"]])
def test_a_body_up_to_the_limit_is_read_whole_and_its_size_told_as_it_grows(parts):
    sizes = []
    assert asyncio.run(read_body(request(parts), 10, sizes.append)) == b"".join(parts)
    assert sizes == sorted(sizes) and sizes[-1] == len(b"".join(parts))


@pytest.mark.parametrize(
    ("status", "parts", "headers"),
    [
        (413, [b"01234567890"], {}),
        (413, [b"0123", b"4567", b"890"], {}),
        (413, [b"0123", b"4567", b"890"], {"content_length": "3"}),
        (413, [b"01234567890"], {"content_length": "11"}),
        (413, [], {"content_length": "11", "expect": "100-continue"}),
        (408, [b"012", None, b""], {}),
    ],
)
def test_a_body_that_is_too_large_or_breaks_off_is_refused_whatever_its_length_claims(
    status, parts, headers
):
    refused = refusal(read_body(request(parts, **headers), 10))
    assert refused.status_code == status
    assert status == 408 or refused.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("kind", "encoding", "taken"),
    [
        ("application/json", "", True),
        ("Application/JSON; charset=utf-8", "identity", True),
        ('application/json;charset="UTF-8"', "", True),
        ("", "", False),
        ("text/plain", "", False),
        ("application/x-www-form-urlencoded", "", False),
        ("application/json; charset=latin-1", "", False),
        ("application/json", "gzip", False),
    ],
)
def test_plain_json_alone_is_taken(kind, encoding, taken):
    headers = {"content-type": kind} | ({"content-encoding": encoding} if encoding else {})
    if taken:
        check_media_type(headers)
    else:
        assert refusal(lambda: check_media_type(headers)).status_code == 415


@pytest.mark.parametrize("given", [f"Bearer {SECRET}", f"bearer  {SECRET} "])
def test_the_token_opens_and_is_not_kept(given):
    token = Token(SECRET)
    asyncio.run(token(request(authorization=given)))
    assert SECRET not in repr(vars(token))


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", SECRET, f"Basic {SECRET}", f"Bearer {SECRET}x", "Bearer \xe9"],
)
def test_anything_else_is_refused_and_not_repeated(given):
    refused = refusal(Token(SECRET)(request(authorization=given)))
    assert refused.status_code == 401 and refused.headers == {"WWW-Authenticate": "Bearer"}
    assert SECRET not in refused.detail


def test_a_token_comes_from_a_file_or_from_the_environment(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    assert read_token(None, {}) is None
    for token in (read_token(str(path), {}), read_token(None, {TOKEN_VARIABLE: SECRET})):
        asyncio.run(token(request(authorization=f"Bearer {SECRET}")))
    with pytest.raises(ConfigError, match="both set"):
        read_token(str(path), {TOKEN_VARIABLE: SECRET})
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_token(str(tmp_path / "gone"), {})


@pytest.mark.parametrize("content", ["", "two words", "t\u00f6ken"])
def test_what_is_no_token_is_refused_without_being_shown(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    for source in ((str(path), {}), (None, {TOKEN_VARIABLE: content})):
        with pytest.raises(ConfigError) as refused:
            read_token(*source)
        assert not content or content not in str(refused.value)


LOCAL = ServeConfig("model")
NAMED = ServeConfig("model", host="0.0.0.0", allowed_hosts=["Fill.example", "10.0.0.7"])


def named(*hosts):
    return Headers(raw=[(b"accept", b"*/*"), *((b"host", host.encode()) for host in hosts)])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]:8000", "[::1]",
     "localhost."],
)  # fmt: skip
@pytest.mark.parametrize("config", [LOCAL, NAMED])
def test_a_server_of_this_machine_may_be_called_by_the_names_of_loopback(config, host):
    check_host(named(host), hosts_of(config, has_token=False))


@pytest.mark.parametrize(
    "hosts",
    [(), ("",), ("evil.example",), ("evil.example:8000",), ("localhost.evil.example",),
     ("127.0.0.1.evil.example",), ("localhost", "evil.example"), ("10.0.0.1",), ("[::2]:80",),
     ("evil.example:localhost",), ("localhost@evil.example",), ("0.0.0.0",)],
)  # fmt: skip
def test_a_page_whose_name_was_rebound_to_loopback_is_refused(hosts):
    refused = refusal(lambda: check_host(named(*hosts), hosts_of(LOCAL, has_token=False)))
    assert refused.status_code == 421 and "--allowed_hosts+=" in refused.detail


@pytest.mark.parametrize("has_token", [True, False])
def test_allowed_hosts_hold_wherever_the_server_listens_and_any_name_does_where_a_token_says_who(
    has_token,
):
    hosts = hosts_of(NAMED, has_token)
    check_host(named("fill.example:443"), hosts)
    check_host(named("10.0.0.7"), hosts)
    refusal(lambda: check_host(named("other.example"), hosts))
    assert hosts_of(ServeConfig("model", host="0.0.0.0"), has_token) is None
    assert (hosts_of(LOCAL, has_token) is None) == has_token
