"""Which certificate authorities the machine trusts beside its distribution's: the system's store, and runtimes' own."""

from __future__ import annotations

import glob
import os

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
EXTRA = "/etc/ssl/atoll-extra.pem"
_LOCAL = "/usr/local/share/ca-certificates"
_HASHED = "/etc/ssl/certs"
_OURS = ("atoll-*.crt", "host-*.crt")  # those of the image are in the second

ENVIRONMENT = {
    # These replace a program's own store
    "SSL_CERT_FILE": BUNDLE,
    "REQUESTS_CA_BUNDLE": BUNDLE,
    "CURL_CA_BUNDLE": BUNDLE,
    "GIT_SSL_CAINFO": BUNDLE,
    "PIP_CERT": BUNDLE,
    # and these add to one, which is read at every start: the fewer the faster
    "NODE_EXTRA_CA_CERTS": EXTRA,
    "DENO_CERT": EXTRA,
}


def trust(certificates: list[str], hashes: list[str], root: str = "") -> None:
    """Trust these (PEM, and OpenSSL's hashes of their names) and no others beside the distribution's. OSError.

    What update-ca-certificates would do, which takes seconds here, and leaves as it is when it runs later. Repeatable.
    """
    local, bundle = f"{root}{_LOCAL}", f"{root}{BUNDLE}"
    wanted = [text.strip() + "\n" for text in certificates]
    before = [path for pattern in _OURS for path in glob.glob(f"{local}/{pattern}")]
    kept = _read(bundle)
    for path in before:
        kept = kept.replace(_read(path).strip() + "\n", "")
        os.unlink(path)
        link = f"{root}{_HASHED}/{os.path.basename(path)[:-4]}.pem"
        if os.path.islink(link):
            os.unlink(link)
    for link in glob.glob(f"{root}{_HASHED}/*.0"):
        if os.path.islink(link) and os.readlink(link).startswith(f"{local}/atoll-"):
            os.unlink(link)
    os.makedirs(local, exist_ok=True)
    for number, (text, name) in enumerate(zip(wanted, hashes, strict=True)):
        _write(f"{local}/atoll-{number}.crt", text)
        _link(f"{root}{_HASHED}/{name}.0", f"{local}/atoll-{number}.crt")
    _write(bundle, kept + "".join(text for text in wanted if text not in kept))
    _write(f"{root}{EXTRA}", "".join(wanted))


def _link(link: str, path: str) -> None:
    # For whoever looks an authority up by its name's hash
    if os.path.islink(link):
        os.unlink(link)
    if not os.path.exists(link):
        os.symlink(path, link)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str) -> None:
    # Complete or as it was: without its bundle nothing in the machine could verify anybody
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.chmod(f"{path}.new", 0o644)
    os.rename(f"{path}.new", path)
