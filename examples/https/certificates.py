"""Makes certificates to play with: `python examples/https/certificates.py FOLDER [NAME ...]`.

Without names it makes an authority, `ca.pem`, and what the `atlas.toml` beside this file asks for;
with names only these, anew. Whoever trusts `ca.pem` trusts them for a month. The work is done by
the `openssl` command, version 3; real certificates come from an authority that others trust.
"""

import subprocess
import sys
from pathlib import Path

NAMES = {"one": ["one.test"], "two": ["two.test", "*.two.test"]}

# A key on the curve P-256, which signs many times faster than RSA's.
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def make_authority(folder: Path) -> None:
    """Make the authority, which signs all others."""
    request(folder, "ca", "/CN=An authority to play with", "-addext", "keyUsage=keyCertSign")


def make_pair(folder: Path, file: str) -> None:
    """Make a certificate and its key, and put both in place with a rename each."""
    names = NAMES[file]
    alternatives = ",".join(f"DNS:{name}" for name in names)
    signed = ["-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key")]
    extensions = [f"subjectAltName={alternatives}", "basicConstraints=critical,CA:false"]
    asked = [word for extension in extensions for word in ("-addext", extension)]
    request(folder, f"{file}.new", f"/CN={names[0]}", *signed, *asked)
    for suffix in ("pem", "key"):
        (folder / f"{file}.new.{suffix}").replace(folder / f"{file}.{suffix}")


def request(folder: Path, file: str, subject: str, *more: str) -> None:
    """Have openssl write FILE.pem and FILE.key."""
    out = ["-out", str(folder / f"{file}.pem"), "-keyout", str(folder / f"{file}.key")]
    command = ["openssl", "req", "-x509", "-days", "30", "-subj", subject, *KEY, *out, *more]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def main() -> None:
    folder, *files = sys.argv[1:] or [str(Path(__file__).resolve().parent)]
    if not files:
        make_authority(Path(folder))
    for file in files or NAMES:
        make_pair(Path(folder), file)
    print(f"made in {folder}: {', '.join(files or ['ca', *NAMES])}")


if __name__ == "__main__":
    main()
