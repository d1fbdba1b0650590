"""What a broker that is reached by TLS needs: certificates of an authority of our own, and a user with a password."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

USER = "alice"
SASL, TLS = "SASL", "TLS"  # listeners


def why_not() -> str | None:
    return None if shutil.which("openssl") else "no openssl to make certificates"


class Secured:
    """Beside a broker, in files: whoever shares the broker reads them there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = directory / "ca.pem"
        self.certificate, self.key = directory / "client.pem", directory / "client.key"

    def make(self) -> None:
        self.directory.mkdir()
        (self.directory / "password").write_text(f"pw-{secrets.token_hex(12)}")
        self._openssl(
            "req", "-x509", *_KEY, "-nodes", "-days", "30", "-keyout", "ca.key", "-out", "ca.pem", *_subject("ca")
        )
        for name, seal in (("broker", ["-nodes"]), ("client", ["-passout", "file:password"])):
            self._openssl("req", *_KEY, *seal, "-keyout", f"{name}.key", "-out", f"{name}.csr", *_subject(name))
            (self.directory / "names").write_text("subjectAltName=IP:127.0.0.1\n")
            self._openssl(
                "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-days", "30", "-extfile", "names",
                "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            )  # fmt: skip
        both = [(self.directory / name).read_text() for name in ("broker.key", "broker.pem")]
        (self.directory / "broker.both").write_text("".join(both))

    @property
    def password(self) -> str:
        return (self.directory / "password").read_text()

    def bootstrap(self, listener: str) -> str:
        return (self.directory / listener).read_text()

    def tell(self, listener: str, address: str) -> None:
        (self.directory / listener).write_text(address)

    def client(self, mechanism: str) -> dict[str, str]:
        """Settings of librdkafka. mechanism: of SASL, or TLS: by a certificate, whose key has a password."""
        library = {"ssl.ca.location": str(self.authority), "bootstrap.servers": self.bootstrap(TLS)}
        if mechanism == TLS:
            own = {"ssl.certificate.location": str(self.certificate), "ssl.key.location": str(self.key)}
            return {**library, **own, "security.protocol": "ssl", "ssl.key.password": self.password}
        user = {"sasl.username": USER, "sasl.password": self.password, "sasl.mechanism": mechanism}
        return {**library, **user, "security.protocol": "sasl_ssl", "bootstrap.servers": self.bootstrap(SASL)}

    # ---- what the broker is told -------------------------------------------------------------------------------------

    def format_arguments(self) -> list[str]:
        return ["--add-scram", f"SCRAM-SHA-256=[name={USER},password={self.password}]"]

    def settings(self) -> list[str]:
        module, both = "org.apache.kafka.common.security", self.directory / "broker.both"
        sasl, tls = f"listener.name.{SASL.lower()}", f"listener.name.{TLS.lower()}"
        return [
            *(f"{each}.ssl.keystore.type=PEM" for each in (sasl, tls)),
            *(f"{each}.ssl.keystore.location={both}" for each in (sasl, tls)),
            f"{tls}.ssl.truststore.type=PEM",
            f"{tls}.ssl.truststore.location={self.authority}",
            f"{tls}.ssl.client.auth=required",
            f"{sasl}.sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN",
            f"{sasl}.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;",
            f'{sasl}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{USER}="{self.password}";',
        ]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def _subject(name: str) -> tuple[str, str]:
    return "-subj", f"/CN=shardmem-test-{name}"
