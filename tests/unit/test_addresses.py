"""Addresses: what is one, what is wrong with others, and no secret in any text."""

from __future__ import annotations

import pytest

from foundry_log.shipping.addresses import (
    Destination,
    check_account_url,
    check_container_name,
    parse_destination,
    scrubbed,
    signature_of,
)

pytestmark = pytest.mark.unit

KEY = "A" * 86 + "=="
SAS = "sv=2025-11-05&sp=rcw&sig=c2VjcmV0%2Fc2VjcmV0%3D"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://acct.blob.core.windows.net", "https://acct.blob.core.windows.net"),
        ("https://acct.blob.core.windows.net/", "https://acct.blob.core.windows.net"),
        ("https://acct.blob.core.usgovcloudapi.net", "https://acct.blob.core.usgovcloudapi.net"),
        ("https://logs.example.com:8443", "https://logs.example.com:8443"),
        (f"https://acct.blob.core.windows.net/?{SAS}", "https://acct.blob.core.windows.net"),
        ("http://127.0.0.1:10000/devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1"),
        ("http://localhost:10000/devstoreaccount1/", "http://localhost:10000/devstoreaccount1"),
        ("http://[::1]:10000/devstoreaccount1", "http://[::1]:10000/devstoreaccount1"),
    ],
)
def test_account_urls(url: str, expected: str) -> None:
    """They lose their query and the slash at their end."""
    assert check_account_url(url) == expected


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("", "has no scheme; use https://ACCOUNT.blob.core.windows.net"),
        ("not a url", "has white space"),
        ("acct.blob.core.windows.net", "has no scheme"),
        ("ftp://acct.blob.core.windows.net", "has the scheme 'ftp'"),
        ("https://", "names no host"),
        ("https:///container", "names no host"),
        ("https://acct.blob.core.windows.net\n", "has white space"),
        ("https://acct.blob.core.windows.net:port", "cannot be read"),
        ("https://[::1", "cannot be read"),
        (
            "http://acct.blob.core.windows.net",
            "in the clear; use https://acct.blob.core.windows.net",
        ),
        ("https://acct.blob.core.windows.net/logs", "has a path"),
        ("http://127.0.0.1:10000/devstoreaccount1/logs", "has a path"),
        (
            "https://acct.dfs.core.windows.net",
            "dfs service, not of blobs; use https://acct.blob.core.windows.net",
        ),
        ("https://acct.queue.core.windows.net", "queue service"),
        ("https://acct.file.core.windows.net", "file service"),
        ("https://user:secret@acct.blob.core.windows.net", "user's name or password"),
    ],
)
def test_wrong_account_urls(url: str, wrong: str) -> None:
    """The error says what is wrong and what is right, and gives no password away."""
    with pytest.raises(ValueError, match="the URL") as caught:
        check_account_url(url)
    assert wrong in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["abc", "a1b", "fla-logs", "a-b-c", "0" * 63, "$root", "$logs"])
def test_container_names(name: str) -> None:
    """Azure's rules."""
    assert check_container_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "ab", "a" * 64, "Logs", "a_b", "-ab", "ab-", "a--b", "lögs", "abc\n", "a/b", "$x"]
)
def test_wrong_container_names(name: str) -> None:
    """They are refused with the rule."""
    with pytest.raises(ValueError, match="3 to 63 characters"):
        check_container_name(name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "https://acct.blob.core.windows.net/logs",
            Destination("https://acct.blob.core.windows.net", "logs"),
        ),
        (
            "https://acct.blob.core.windows.net/logs/team/run%201/",
            Destination("https://acct.blob.core.windows.net", "logs", "team/run 1"),
        ),
        (
            f"https://acct.blob.core.windows.net/logs/team?{SAS}",
            Destination("https://acct.blob.core.windows.net", "logs", "team", credential=SAS),
        ),
        (
            "http://127.0.0.1:10000/devstoreaccount1/logs/team",
            Destination("http://127.0.0.1:10000/devstoreaccount1", "logs", "team"),
        ),
        ("file:///var/log%20s", Destination(directory="/var/log s")),
        ("file://localhost/srv", Destination(directory="/srv")),
    ],
)
def test_destinations(url: str, expected: Destination) -> None:
    """An account with a container and a prefix, or a directory."""
    assert parse_destination(url) == expected


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("https://acct.blob.core.windows.net", "names no container"),
        ("http://127.0.0.1:10000/devstoreaccount1", "names no container"),
        ("https://acct.blob.core.windows.net/Logs", "is no container's name"),
        ("https://acct.blob.core.windows.net/logs/../up", "is no blob's name"),
        ("https://acct.blob.core.windows.net/logs/%2e%2e/up", "is no blob's name"),
        ("file://server/share", "is no directory of this host; use file:///DIRECTORY"),
        ("file:relative", "is no directory of this host"),
        ("s3://bucket/prefix", "has the scheme 's3'"),
        ("/var/log", "has no scheme"),
    ],
)
def test_wrong_destinations(url: str, wrong: str) -> None:
    """They are refused with what is wrong."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_destination(f"{url}?{SAS}" if url.startswith("http") else url)
    assert wrong in str(caught.value)
    assert "sig" not in str(caught.value)


def test_a_destination_shows_no_secret() -> None:
    """Its signature is an attribute of its own, and in no repr."""
    destination = parse_destination(f"https://acct.blob.core.windows.net/logs?{SAS}")
    assert destination.credential == SAS
    assert "sig" not in repr(destination)
    assert "?" not in destination.account_url


@pytest.mark.parametrize("url", [f"https://a.example/?{SAS}", f"https://a.example?{SAS}#part"])
def test_the_signature_of_a_url(url: str) -> None:
    """All that is behind its question mark."""
    assert signature_of(url) == SAS
    assert signature_of("https://a.example/") is None


@pytest.mark.parametrize(
    "text",
    [
        f"https://acct.blob.core.windows.net/logs?{SAS}",
        "url=https%3A%2F%2Fa.example%3Fsig%3Dc2VjcmV0",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0==;EndpointSuffix=x",
        "SharedAccessSignature=sv=2025&sig=c2VjcmV0",
        "Authorization: Bearer c2VjcmV0.c2VjcmV0",
        "Authorization: SharedKey acct:c2VjcmV0=",
        "https://user:c2VjcmV0@a.example/",
        f"key {KEY.replace('A', 'c2VjcmV0', 1)[:86]}== is wrong",
        '{"sig": "c2VjcmV0"}',
    ],
)
def test_secrets_are_taken_out_of_a_text(text: str) -> None:
    """Signatures, keys, tokens, passwords."""
    assert "c2VjcmV0" not in scrubbed(text)
    assert "[redacted]" in scrubbed(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://acct.blob.core.windows.net/logs/run.log",
        "the bearer of this design=new; signal=9, sigma=0.1",
        "sha256 " + "a" * 64,
    ],
)
def test_other_text_stays(text: str) -> None:
    """What is no secret is needed to understand the rest."""
    assert scrubbed(text) == text
