"""What is read of a certificate, and which of several is shown."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from atlas_pkg.config.model import Config, Listen, ListenTls, TlsHost
from atlas_pkg.errors import ConfigError
from atlas_pkg.net.certificates import (
    Certificates,
    certificate_changes,
    read_certificates,
    read_validity,
    show_day,
)

NOW = datetime(2100, 1, 1, tzinfo=UTC)
AUTHORITY = trustme.CA()


def issue(*names: str, ends: datetime = NOW, ca: trustme.CA = AUTHORITY) -> trustme.LeafCert:
    return ca.issue_cert(*names, not_before=ends - timedelta(days=30), not_after=ends)


def write(folder: Path, file: str, *names: str, ends: datetime = NOW) -> None:
    pair = issue(*names, ends=ends)
    (folder / f"{file}.pem").write_bytes(pair.cert_chain_pems[0].bytes())
    (folder / f"{file}.key").write_bytes(pair.private_key_pem.bytes())


def read(
    folder: Path, *hosts: str, previous: Certificates | None = None, **keys: str
) -> Certificates:
    tables = tuple(TlsHost((host,), f"{host[-5:]}.pem", f"{host[-5:]}.key") for host in hosts)
    tls = ListenTls("cert.pem", "cert.key", hosts=tables, **keys)
    found = read_certificates(Config(folder / "atlas.toml", Listen(tls=tls)), previous)
    assert found is not None
    return found


@pytest.mark.parametrize("year", [1999, 2027, 2049, 2050, 2130])
def test_the_time_of_a_certificate_is_read_however_it_is_written(year: int) -> None:
    ends = datetime(year, 6, 30, 12, 34, 56, tzinfo=UTC)

    validity = read_validity(issue("a.test", ends=ends).cert_chain_pems[0].bytes())

    assert validity == ((ends - timedelta(days=30)).timestamp(), ends.timestamp())


@given(st.binary(max_size=200), st.integers(0, 500))
def test_a_damaged_certificate_is_a_sentence(garbage: bytes, place: int) -> None:
    der = ssl.PEM_cert_to_DER_cert(DAMAGED.decode())
    pem = ssl.DER_cert_to_PEM_cert(der[:place] + garbage + der[place + len(garbage) :])

    try:
        read_validity(pem.encode())
    except (ValueError, IndexError):
        return


DAMAGED = issue("a.test").cert_chain_pems[0].bytes()


class Asking:
    """Stands for a connection in its handshake."""

    context: ssl.SSLContext


def test_an_exact_name_goes_before_a_wildcard_and_others_get_the_first(tmp_path: Path) -> None:
    for file in ("cert", "a.com", "b.com"):
        write(tmp_path, file, "x.test")
    certificates = read(tmp_path, "*.a.com", "w.b.com")

    def shown(name: str | None) -> ssl.SSLContext:
        asking = Asking()
        certificates._choose(cast("Any", asking), name, certificates.front)
        return asking.context

    first, wildcard, exact = shown(None), shown("x.a.com"), shown("w.b.com")
    assert len({id(first), id(wildcard), id(exact)}) == 3
    assert shown("X.A.COM.") is wildcard
    for name in ("a.com", "y.x.a.com", "b.com", "", "com", "*.a.com.evil"):
        assert shown(name) is first


def test_keys_of_sessions_outlive_certificates_but_not_what_is_asked_of_clients(
    tmp_path: Path,
) -> None:
    write(tmp_path, "cert", "a.test")
    first = read(tmp_path)
    write(tmp_path, "cert", "a.test")
    second = read(tmp_path, previous=first)
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    third = read(tmp_path, previous=second, client_ca="ca.pem")

    assert second.front is first.front
    assert certificate_changes(first, second) == (
        "listen.tls: another certificate, until 2100-01-01",
    )
    assert third.front is not second.front
    assert certificate_changes(second, third) == ("listen.tls: sessions begin anew",)
    assert certificate_changes(second, read(tmp_path, previous=second)) == ()


def test_they_are_shown_once_they_are_in_force(tmp_path: Path) -> None:
    write(tmp_path, "cert", "a.test")
    first = read(tmp_path)
    second = read(tmp_path, previous=first)
    assert first.front.sni_callback == first._choose

    second.show()

    assert first.front.sni_callback == second._choose


def test_a_warning_comes_fourteen_days_before(tmp_path: Path) -> None:
    write(tmp_path, "cert", "a.test")
    certificates = read(tmp_path)
    day, ends = 86_400, NOW.timestamp()

    assert certificates.warnings(ends - 15 * day) == []
    assert certificates.warnings(ends - 13 * day) == [
        "the certificate of default expires on 2100-01-01"
    ]
    assert certificates.warnings(ends + 1) == [
        "the certificate of default has expired on 2100-01-01"
    ]


def test_one_that_is_not_valid_yet_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "cert", "a.test")
    certificates = read(tmp_path)
    begins = certificates.pairs[0].validity.begins

    assert certificates.warnings(begins - 1) == [
        f"the certificate of default is not valid before {show_day(begins)}"
    ]


@pytest.mark.parametrize("other", [b"", None], ids=["an empty file", "the certificate"])
def test_a_file_without_a_key_is_called_one(other: bytes | None, tmp_path: Path) -> None:
    write(tmp_path, "cert", "a.test")
    content = (tmp_path / "cert.pem").read_bytes() if other is None else other
    (tmp_path / "cert.key").write_bytes(content)

    with pytest.raises(ConfigError, match=r"cert\.key holds no private key"):
        read(tmp_path)


def test_a_key_with_a_password_is_refused_without_asking_for_it(tmp_path: Path) -> None:
    write(tmp_path, "cert", "a.test")
    key = (tmp_path / "cert.key").read_text().replace("RSA PRIVATE", "PRIVATE")
    (tmp_path / "cert.key").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
        + key.partition("\n")[2].replace("-----END", "-----END ENCRYPTED", 1)
    )

    with pytest.raises(ConfigError, match="are no pair"):
        read(tmp_path)


def test_authorities_that_are_none_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "cert", "a.test")
    (tmp_path / "ca.pem").write_text("nothing")

    with pytest.raises(ConfigError, match=r"atlas\.toml: listen\.tls\.client_ca: holds no"):
        read(tmp_path, client_ca="ca.pem")
