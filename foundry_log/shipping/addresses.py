"""Where blobs go: addresses that are checked, and taken apart from the secrets in them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import url2pathname

from foundry_log.shipping.store import check_blob_name

RIGHT_FORM = "https://ACCOUNT.blob.core.windows.net"
REPLACEMENT = "[redacted]"

_CONTAINER = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*|\$root|\$logs|\$web")
_OTHER_SERVICE = re.compile(r"(?P<account>.*)\.(?P<service>dfs|queue|file|table)\.(?P<rest>.*)")
_SECRETS = re.compile(
    r"(?P<name>(?:\b|(?<=%3F)|(?<=%26))"
    r"(?:sig|AccountKey|SharedAccessSignature|SharedAccessKey)(?:=|%3D|['\"]\s*[:=]\s*['\"]))"
    r"[^\s&;,'\"<>]+"
    r"|(?P<scheme>\b(?:Bearer|SharedKey)\s+)[\w.~+/=:-]{8,}"
    r"|(?P<user>://)[^/\s@]+@"
    # An account's key: 64 bytes in base 64, wherever it stands.
    r"|(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}==",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Destination:
    """Where to ship to: a container of an account and a prefix in it, or a local directory.

    `directory` is absolute, and None where there is an account. `credential` is the shared access
    signature that stood in the URL, without its `?`, or None; it is in no repr.
    """

    account_url: str = ""
    container: str = ""
    prefix: str = ""
    directory: str | None = None
    credential: str | None = field(default=None, repr=False)


def parse_destination(url: str) -> Destination:
    """Take a URL apart that says where to ship to.

    Args:
        url: `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`, its prefix optional and a
            shared access signature behind `?` too, or `file:///DIRECTORY`.

    Raises:
        ValueError: it is neither; the text says what is wrong, and holds no secret.
    """
    split = _split(url)
    if split.scheme == "file":
        return Destination(directory=_directory(split, url))
    if not split.scheme:
        raise _wrong(url, "has no scheme", f"file:///DIRECTORY or {RIGHT_FORM}/CONTAINER")
    if "?" in unquote(split.path):
        raise _wrong(url.partition("%3")[0], "has an encoded '?' in its path; write it as '?'")
    parts = [unquote(part) for part in split.path.split("/") if part]
    count = 1 if _is_loopback(split) else 0
    path = "".join(f"/{part}" for part in parts[:count])
    account_url = check_account_url(f"{split.scheme}://{split.netloc}{path}")
    if len(parts) == count:
        raise _wrong(url, "names no container", f"{account_url}/CONTAINER")
    container = check_container_name(parts[count])
    prefix = "/".join(parts[count + 1 :])
    if prefix:
        check_blob_name(prefix)
    return Destination(account_url, container, prefix, credential=split.query or None)


def check_account_url(url: str) -> str:
    """Return an account's URL without its query, and without a slash at its end.

    Args:
        url: `https://ACCOUNT.blob.core.windows.net`, or of a domain of one's own; on this host also
            `http`, and with the account in the path, as Azurite has it.

    Raises:
        ValueError: it is none; the text says what is wrong, and holds no secret.
    """
    split = _split(url)
    host = split.hostname or ""
    if split.scheme not in ("https", "http"):
        raise _wrong(url, f"has the scheme {split.scheme!r}" if split.scheme else "has no scheme")
    if not host:
        raise _wrong(url, "names no host")
    if split.scheme == "http" and not _is_loopback(split):
        raise _wrong(url, "sends logs and keys in the clear", f"https://{split.netloc}")
    other = _OTHER_SERVICE.fullmatch(host)
    if other:
        right = f"https://{other['account']}.blob.{other['rest']}"
        raise _wrong(url, f"is that of the {other['service']} service, not of blobs", right)
    path = split.path.strip("/")
    if path.count("/") >= (1 if _is_loopback(split) else 0) and path:
        right = f"{split.scheme}://{split.netloc}"
        raise _wrong(url, "has a path; the container's name is given by itself", right)
    return f"{split.scheme}://{split.netloc}" + (f"/{path}" if path else "")


def signature_of(url: str) -> str | None:
    """Return the shared access signature in a URL, which is all behind `?`; None without one."""
    return url.partition("#")[0].partition("?")[2] or None


def check_container_name(name: str) -> str:
    """Return `name` if a container may have it.

    Raises:
        ValueError: it has fewer than 3 or more than 63 characters, others than `a` to `z`, digits
            and `-`, or a dash at an end or beside another.
    """
    if not _CONTAINER.fullmatch(name):
        raise ValueError(
            f"{scrubbed(name)!r} is no container's name: 3 to 63 characters of a-z, 0-9 and single "
            "dashes between them; use one such as 'training-logs'"
        )
    return name


def scrubbed(text: str) -> str:
    """Return `text` without signatures, account keys, tokens and passwords of URLs."""
    return _SECRETS.sub(_without_secret, text)


def _without_secret(found: re.Match[str]) -> str:
    if found["user"]:
        return f"://{REPLACEMENT}@"
    return (found["name"] or found["scheme"] or "") + REPLACEMENT


def _split(url: str) -> SplitResult:
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        raise _wrong(url, "has white space or a control character in it")
    try:
        split = urlsplit(url)
        _ = split.port
    except ValueError as error:
        raise _wrong(url, f"cannot be read: {scrubbed(str(error))}") from None
    if "@" in split.netloc:
        raise _wrong(url, "has a user's name or password in it; give the credential by itself")
    return split


def _directory(split: SplitResult, url: str) -> str:
    path = url2pathname(split.path)
    if split.netloc not in ("", "localhost") or not Path(path).is_absolute() or split.query:
        raise _wrong(url, "is no directory of this host", "file:///DIRECTORY")
    return path


def _is_loopback(split: SplitResult) -> bool:
    host = split.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _wrong(url: str, reason: str, right: str = RIGHT_FORM) -> ValueError:
    shown = scrubbed(url).partition("?")[0]
    return ValueError(f"the URL {shown!r} {reason}; use {right}")
