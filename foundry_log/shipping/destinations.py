"""From the address that people write to the store behind it, with credentials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from foundry_log.extras import import_extra
from foundry_log.shipping.addresses import parse_destination
from foundry_log.shipping.azure_store import AzureStore
from foundry_log.shipping.local_store import LocalStore
from foundry_log.shipping.store import BlobStore


def store_at(to: str, credential: Any = None) -> tuple[BlobStore, str]:
    """Return the store at an address, not opened yet, and the prefix of names in it.

    Args:
        to: `https://<account>.blob.core.windows.net/<container>[/<prefix>]`, with a SAS behind `?`
            or without, or `file:///<directory>`.
        credential: what azure-storage-blob takes; None for that of the address, then of the
            environment (AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_KEY,
            AZURE_STORAGE_CONNECTION_STRING, the names of Azure's command line), then for
            azure-identity's DefaultAzureCredential.

    Raises:
        ValueError: it is no such address.
        ImportError: it is Azure's, and the SDK is missing.
    """
    destination = parse_destination(to)
    if destination.directory is not None:
        return LocalStore(destination.directory), ""
    # Here and not when it is needed: that may be on a thread, and a fork would not wait for it.
    import_extra("azure.storage.blob.aio", "azure", "shipping to Azure Blob Storage")
    credential = (
        credential
        or destination.credential
        or credential_from_environment(destination.account_url, os.environ)
    )
    store = AzureStore(destination.account_url, destination.container, credential)
    return store, destination.prefix


def credential_from_environment(account_url: str, environment: Mapping[str, str]) -> str | None:
    """Return the signature or account key that the environment has, None for none.

    What a connection string of another account holds is none.
    """
    fields = dict(
        part.split("=", 1)
        for part in environment.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
        if "=" in part
    )
    if fields.get("AccountName") not in _account_names(account_url):
        fields = {}  # of another account
    candidates = (
        environment.get("AZURE_STORAGE_SAS_TOKEN"),
        environment.get("AZURE_STORAGE_KEY"),
        fields.get("AccountKey"),
        fields.get("SharedAccessSignature"),
    )
    return next((text for text in candidates if text), None)


def _account_names(account_url: str) -> tuple[str, str]:
    """Return what may be the account's name: in the host's, or on this host in the path."""
    split = urlsplit(account_url)
    return (split.hostname or "").partition(".")[0], split.path.strip("/")
