"""Bodies, media types and tokens that are refused, and what the refusal does not give away."""

import asyncio

import pytest

from fitb.errors import ConfigError
from fitb.serve.config import ServeConfig
from fitb.serve.limits import (
    TOKEN_VARIABLE,
    Token,
    check_media_type,
    hosts_of,
    read_body,
    read_token,
)
from fitb.serve.refusal import Refusal

SECRET = "correct-horse-battery"


def read(parts, most_bytes=10, **headers):
    """Read a body that comes in parts, None standing for a closed connection."""
    taken = []
    messages = iter(
        {"type": "http.disconnect"}
        if part is None
        else {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    )

    async def receive():
        taken.append(next(messages))
        return taken[-1]

    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(read_body(receive, names, most_bytes)), taken


@pytest.mark.parametrize("parts", [[b""], [b"0123456789"], [b"0123", b"", b"456789"]])
def test_a_body_up_to_the_limit_is_read_whole(parts):
    assert read(parts)[0] == b"".join(parts)


@pytest.mark.parametrize(
    ("parts", "headers"),
    [
        ([b"01234567890"], {}),
        ([b"0123", b"4567", b"890"], {}),
        ([b"0123", b"4567", b"890"], {"content_length": "3"}),
        ([b"01234567890"], {"content_length": "11"}),
        ([], {"content_length": "11", "expect": "100-continue"}),
    ],
)
def test_a_body_over_the_limit_is_refused_whatever_its_length_claims(parts, headers):
    with pytest.raises(Refusal) as refused:
        read(parts, **headers)
    assert refused.value.status == 413
    assert refused.value.headers["connection"] == "close"


def test_a_body_that_breaks_off_is_refused():
    with pytest.raises(Refusal) as refused:
        read([b"012", None, b""])
    assert refused.value.status == 408


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON; charset=utf-8", 'application/json;charset="UTF-8"'],
)
def test_json_is_taken(kind):
    check_media_type({"content-type": kind})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_other_media_types_are_refused(headers):
    with pytest.raises(Refusal) as refused:
        check_media_type(headers)
    assert refused.value.status == 415


@pytest.mark.parametrize("given", [f"Bearer {SECRET}", f"bearer  {SECRET} "])
def test_the_token_opens(given):
    Token(SECRET).check({"authorization": given})


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", SECRET, f"Basic {SECRET}", f"Bearer {SECRET}x", "Bearer \xe9"],
)
def test_anything_else_is_refused_and_not_repeated(given):
    with pytest.raises(Refusal) as refused:
        Token(SECRET).check({"authorization": given} if given else {})
    assert refused.value.status == 401
    assert refused.value.headers == {"www-authenticate": "Bearer"}
    assert SECRET not in refused.value.reason


def test_a_token_does_not_keep_its_secret():
    assert SECRET not in repr(vars(Token(SECRET)))


def test_a_token_comes_from_a_file_or_from_the_environment(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    assert read_token(None, {}) is None
    for token in (read_token(str(path), {}), read_token(None, {TOKEN_VARIABLE: SECRET})):
        token.check({"authorization": f"Bearer {SECRET}"})


@pytest.mark.parametrize("content", ["", "two words", "t\u00f6ken"])
def test_what_is_no_token_is_refused_without_being_shown(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    for source in ((str(path), {}), (None, {TOKEN_VARIABLE: content})):
        with pytest.raises(ConfigError) as refused:
            read_token(*source)
        assert not content or content not in str(refused.value)


def test_two_tokens_or_a_file_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="both set"):
        read_token(str(tmp_path / "token"), {TOKEN_VARIABLE: SECRET})
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_token(str(tmp_path / "token"), {})


LOCAL = ServeConfig("model")
NAMED = ServeConfig("model", host="0.0.0.0", allowed_hosts=["Fill.example", "10.0.0.7"])


def headers_of(*hosts):
    return [(b"accept", b"*/*"), *((b"host", host.encode()) for host in hosts)]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1",
        "127.0.0.1:80",
        "[::1]:8000",
        "[::1]",
        "localhost.",
    ],
)
@pytest.mark.parametrize("config", [LOCAL, NAMED])
def test_a_server_of_this_machine_may_be_called_by_the_names_of_loopback(config, host):
    hosts_of(config, has_token=False).check(headers_of(host))


@pytest.mark.parametrize(
    "hosts",
    [(), ("",), ("evil.example",), ("evil.example:8000",), ("localhost.evil.example",),
     ("127.0.0.1.evil.example",), ("localhost", "evil.example"), ("10.0.0.1",), ("[::2]:80",),
     ("evil.example:localhost",), ("localhost@evil.example",), ("0.0.0.0",)],
)  # fmt: skip
def test_a_page_whose_name_was_rebound_to_loopback_is_refused(hosts):
    with pytest.raises(Refusal) as refused:
        hosts_of(LOCAL, has_token=False).check(headers_of(*hosts))
    assert refused.value.status == 421 and "--allowed_hosts+=" in refused.value.reason


def test_allowed_hosts_are_enforced_wherever_the_server_listens_and_with_a_token_too():
    for has_token in (True, False):
        hosts = hosts_of(NAMED, has_token)
        hosts.check(headers_of("fill.example:443"))
        hosts.check(headers_of("10.0.0.7"))
        with pytest.raises(Refusal):
            hosts.check(headers_of("other.example"))


def test_any_name_will_do_where_a_token_or_the_network_says_who_may_call():
    assert hosts_of(LOCAL, has_token=True) is None
    assert hosts_of(ServeConfig("model", host="0.0.0.0"), has_token=False) is None


def test_the_size_of_a_body_is_told_as_it_grows():
    sizes = []

    async def receive():
        return {"type": "http.request", "body": b"0123", "more_body": len(sizes) < 2}

    assert asyncio.run(read_body(receive, {}, 100, sizes.append)) == b"0123" * 3
    assert sizes == [4, 8, 12]
