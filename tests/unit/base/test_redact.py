"""What is shown or written down of a URL."""

import pytest

from fitb.base.redact import redacted
from fitb.tools.report.gather import without_secrets

CASES = [
    ("https://user:pass@host/a", "https://***@host/a"),
    ("s3://key@bucket/a?versionId=1", "s3://***@bucket/a?***"),
    ("https://host/shards?sig=abc&se=2027 and more", "https://host/shards?*** and more"),
    ("two https://a/?x=1, https://b:c@d/?y", "two https://a/?*** https://***@d/?***"),
    ("'https://host/?sig=abc'", "'https://host/?***'"),
    ("why? data/shards", "why? data/shards"),
    ("a@b.example", "a@b.example"),
]


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_passwords_and_queries_of_urls_are_left_out(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_a_report_shows_no_signature_of_a_url_either(text, shown):
    assert without_secrets(text) == shown
    assert (
        without_secrets(f"data:\n  shards: {text}\n", lines=True) == f"data:\n  shards: {shown}\n"
    )
