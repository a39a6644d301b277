"""Ed25519 over SHA256SUMS, which has the manifest's own digest: made by whoever packs a bundle,
checked with a public key that comes by another way. The same key and bytes are the same signature
(RFC 8032).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.runner.bundle import SIGNATURE, SUMS

from ..errors import BadInput, Missing, UsageError
from ..run_folder import RunFolder
from .archive import read_archive

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PASSPHRASE = "PIPELINE_SIGN_PASSPHRASE"
PRIVATE = "make one: openssl genpkey -algorithm ed25519 -out private.pem"
PUBLIC = "make it: openssl pkey -in private.pem -pubout -out public.pem"


def _serialization() -> Any:
    """What reads keys. Raises Missing where its package is not installed."""
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise Missing(
            "signatures need the package cryptography", "run 'pip install cryptography'"
        ) from error
    return serialization


def _pem(path: Path, mend: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Missing(f"{path}: cannot be read ({error.strerror})", mend) from error


def signing_key(path: Path) -> Ed25519PrivateKey:
    """A private key of a PKCS8 file in PEM; an encrypted one takes its passphrase from the
    environment. Raises Missing, UsageError, BadInput.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    content = _pem(path, PRIVATE)
    passphrase = os.environ.get(PASSPHRASE, "").encode() or None
    encrypted = b"ENCRYPTED" in content
    if encrypted and passphrase is None:
        raise UsageError(f"{path}: the key is encrypted", f"give its passphrase in {PASSPHRASE}")
    try:
        key = serialization.load_pem_private_key(content, passphrase if encrypted else None)
    except Exception as error:  # of OpenSSL, of Rust's parsers, of unknown algorithms
        wrong = f", or {PASSPHRASE} is not its passphrase" if encrypted else ""
        raise BadInput(f"{path}: not a private key in PEM{wrong}", PRIVATE) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path}: a key, but not of Ed25519", PRIVATE)
    return key


def public_hex(key: Ed25519PrivateKey) -> str:
    """Its public key's 32 bytes, which say whose a signature is."""
    public: bytes = key.public_key().public_bytes_raw()
    return public.hex()


def check_signed(archive: Path, key: Path) -> dict[str, Any]:
    """As `check_archive`, and that the bundle is signed by the owner of the public `key` (PEM).

    Raises BadInput where it is not, or where there is no signature.
    """
    serialization = _serialization()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public = serialization.load_pem_public_key(_pem(key, PUBLIC))
    except Missing:
        raise
    except Exception as error:  # as above
        raise BadInput(f"{key}: not a public key in PEM", PUBLIC) from error
    if not isinstance(public, Ed25519PublicKey):
        raise BadInput(f"{key}: a key, but not of Ed25519", PUBLIC)
    manifest, contents = read_archive(archive)
    if SIGNATURE not in contents or SUMS not in contents:
        raise BadInput(f"{archive}: not signed (no {SIGNATURE} in it)", "get a signed one")
    try:
        public.verify(contents[SIGNATURE], contents[SUMS])
    except InvalidSignature as error:
        raise BadInput(
            f"{archive}/{SIGNATURE}: not a signature by the owner of {key}",
            "do not use this bundle, or give its maker's own key",
        ) from error
    return manifest


def kept_signature(
    run: RunFolder, target: str, config: dict[str, Any], on_note: Callable[[str], None]
) -> dict[str, Any]:
    """What is to be added to the config of a bundle that is not to be signed: one that is there is
    no other for being signed.
    """
    signer = run.record["artefacts"].get(target, {}).get("config", {}).get("signed_by")
    if signer is None:
        return {}
    signed = {"signed_by": signer}
    if run.is_current(target, config | signed):
        return signed
    mend = "sign the new one with 'pipeline package --sign'"
    on_note(f"note: {target} was signed, and is out of date or another was ordered; {mend}")
    return {}
