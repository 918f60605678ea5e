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
def test_passwords_and_queries_of_urls_are_left_out_of_a_report_too(text, shown):
    assert redacted(text) == redacted(shown) == without_secrets(text) == shown
    lines = "data:\n  shards: {}\n"
    assert without_secrets(lines.format(text), lines=True) == lines.format(shown)
