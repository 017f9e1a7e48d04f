"""Addresses become stores, with the credential that is nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundry_log.shipping.destinations import credential_from_environment, store_at

pytestmark = pytest.mark.unit
ACCOUNT = "https://logs.blob.core.windows.net"
SIGNATURE = "SharedAccessSignature=sv=1&sig=s"
STRING = "DefaultEndpointsProtocol=https;AccountName={};AccountKey=a2V5==;EndpointSuffix=x"


@pytest.mark.parametrize(
    ("account_url", "environment", "credential"),
    [
        (ACCOUNT, {}, None),
        (ACCOUNT, {"AZURE_STORAGE_KEY": "k=="}, "k=="),
        (ACCOUNT, {"AZURE_STORAGE_KEY": "k==", "AZURE_STORAGE_SAS_TOKEN": "?sig=s"}, "?sig=s"),
        (ACCOUNT, {"AZURE_STORAGE_CONNECTION_STRING": STRING.format("logs")}, "a2V5=="),
        (ACCOUNT, {"AZURE_STORAGE_CONNECTION_STRING": STRING.format("other")}, None),
        (
            ACCOUNT,
            {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=logs;{SIGNATURE}"},
            "sv=1&sig=s",
        ),
        (ACCOUNT, {"AZURE_STORAGE_CONNECTION_STRING": "nonsense"}, None),
        (
            "http://127.0.0.1:10000/local",
            {"AZURE_STORAGE_CONNECTION_STRING": STRING.format("local")},
            "a2V5==",
        ),
    ],
)
def test_the_environment_gives_the_credential(
    account_url: str, environment: dict[str, str], credential: str | None
) -> None:
    """A signature before a key, and a connection string's of this account alone."""
    assert credential_from_environment(account_url, environment) == credential


def test_a_directory_needs_no_credential(tmp_path: Path) -> None:
    """Nor Azure's SDK; the address has no prefix of its own."""
    store, prefix = store_at(tmp_path.as_uri())
    assert (store.url, prefix) == (tmp_path.as_uri(), "")
