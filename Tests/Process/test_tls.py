# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""TLS between real processes: foreign clients, our command line, new certificates under way, six services that trust each other."""

import signal
import subprocess
from pathlib import Path

import grpc
import pytest

from harness import MEMQ, PATIENCE, Server, wait_until
from test_services import SERVICES, Processes

AUTHORITY = """
[ca]
default_ca = main
[main]
dir = .
database = index.txt
new_certs_dir = .
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
rand_serial = yes
[any]
commonName = optional
"""
KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
HEALTH = "/grpc.health.v1.Health/"


class Authority:
    """Makes certificates with the openssl command."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        (folder / "ca.cnf").write_text(AUTHORITY)
        (folder / "index.txt").write_text("")
        self.openssl("req", "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "99", *KEY)
        self.root = folder / "ca.pem"

    def openssl(self, *arguments):
        return subprocess.run(
            ["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout

    def make(self, name, common_name="memq", names="DNS:localhost,IP:127.0.0.1", dates=("-days", "30")):
        """Certificate and key; each appears whole, under its name."""
        subject = ["-subj", f"/CN={common_name}", "-addext", f"subjectAltName={names}"]
        self.openssl("req", "-new", "-keyout", "new.key", "-out", "new.csr", *subject, *KEY)
        signer = ["-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key"]
        self.openssl("ca", "-batch", "-notext", *signer, "-in", "new.csr", "-out", "new.pem", *dates)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        (self.folder / "new.key").rename(key)
        (self.folder / "new.pem").rename(certificate)
        return certificate, key

    def credentials(self, pair=None):
        certificate, key = (path.read_bytes() for path in pair) if pair else (None, None)
        return grpc.ssl_channel_credentials(self.root.read_bytes(), key, certificate)


class SecureServer(Server):
    """`memq serve` with TLS."""

    def __init__(self, folder, authority, *options, pair=None):
        self.authority = authority
        certificate, key = pair or authority.make("server", "first")
        super().__init__(
            folder / "data", "--tls-certificate", certificate, "--tls-key", key, "--tls-reload", "1s", *options
        )

    def tool(self, *arguments, options=None):
        """The command line; without `options` with the authority's root."""
        options = ["--tls-ca", self.authority.root] if options is None else options
        command = [MEMQ, *arguments, "--server", self.address, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    def shown(self):
        """The common name of the certificate a new connection gets."""
        hello = subprocess.run(
            ["openssl", "s_client", "-connect", self.address, "-alpn", "h2"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
        )
        return hello.stdout.split("subject=CN = ")[1].splitlines()[0]


@pytest.fixture
def authority(folder):
    return Authority(folder / "authority")


def check(channel):
    """A health check; the bytes of the answer."""
    return channel.unary_unary(HEALTH + "Check")(b"", timeout=PATIENCE, wait_for_ready=True)


def test_foreign_clients_and_our_own_come_by_tls(folder, authority, monkeypatch):
    monkeypatch.setenv("MEMQ_CLIENT_TLS_CA", str(authority.root))
    with SecureServer(folder, authority).start(ready=False) as server:
        with grpc.secure_channel(server.address, authority.credentials()) as channel:
            assert check(channel) == b"\x08\x01"
        server.cli("topic", "create", "events", "--partitions", "1")
        server.cli("produce", "events", stdin=b"a\nb\n")
        assert server.values("events") == [b"a", b"b"]
        # A plain no is one, whatever else is set.
        monkeypatch.setenv("MEMQ_CLIENT_TLS", "false")
        refused = server.tool("topic", "list", "--connect-timeout", "0", options=[])
        assert "with TLS" in refused.stderr


def test_new_certificates_serve_new_connections_while_an_open_stream_goes_on(folder, authority):
    with SecureServer(folder, authority).start(ready=False) as server:
        with grpc.secure_channel(server.address, authority.credentials()) as channel:
            assert check(channel) == b"\x08\x01"
            assert server.shown() == "first"
            watch = channel.unary_stream(HEALTH + "Watch")(b"")
            assert next(watch) == b"\x08\x01"
            authority.make("server", "second")
            wait_until("the new certificate is shown", lambda: server.shown() == "second")
            # The old connection carries calls, and the stream that was open, to the end.
            assert check(channel) == b"\x08\x01"
            # What cannot be used changes nothing.
            (authority.folder / "server.pem").write_text("nothing")
            wait_until("the trouble is logged", lambda: "old ones stay" in server.log.read_text())
            assert server.shown() == "second"
            assert watch.is_active()
            server.process.send_signal(signal.SIGTERM)
            assert next(watch) == b"\x08\x02"


@pytest.mark.parametrize(
    "changes, options, says",
    [
        (dict(dates=("-startdate", "20200101000000Z", "-enddate", "20200201000000Z")), None,
         "expired on 2020-02-01 00:00:00 UTC"),
        (dict(names="DNS:a.example,DNS:b.example"), None, "is for a.example, b.example, not for 127.0.0.1"),
        (dict(), ["--tls"], 'is of an unknown issuer, "authority"'),
        (dict(), [], "This port speaks gRPC over HTTP/2, with TLS"),
    ],
    ids=["expired", "another name", "unknown issuer", "no TLS"],
)
def test_the_command_line_says_why_it_does_not_trust_a_server(folder, authority, changes, options, says):
    server = SecureServer(folder, authority, pair=authority.make("server", **changes))
    with server.start(ready=False):
        wait_until("the server serves", lambda: "Serving" in server.log.read_text())
        said = server.tool("topic", "list", "--connect-timeout", "0", options=options)
        assert said.returncode != 0
        assert says in said.stderr
        assert "memq serve" not in said.stderr


def test_a_server_that_wants_certificates_gets_them_or_says_so(folder, authority):
    options = ["--tls-clients", "required", "--tls-trust", authority.root]
    with SecureServer(folder, authority, *options).start(ready=False) as server:
        pair = authority.make("client", "somebody")
        with grpc.secure_channel(server.address, authority.credentials(pair)) as channel:
            assert check(channel) == b"\x08\x01"
        shown = ["--tls-ca", authority.root, "--tls-certificate", pair[0], "--tls-key", pair[1]]
        assert server.tool("topic", "create", "events", options=shown).returncode == 0
        refused = server.tool("topic", "list", "--connect-timeout", "0")
        assert refused.returncode != 0
        assert "requires a client certificate, and we showed none" in refused.stderr
        assert "the client shows no certificate" in server.log.read_text()


def test_a_wrong_pair_of_files_ends_the_start_with_their_names(folder, authority):
    certificate, _ = authority.make("one")
    _, key = authority.make("two")
    command = [MEMQ, "serve", "--data", folder / "data", "--listen", "127.0.0.1:0"]
    said = subprocess.run(
        [*command, "--tls-certificate", certificate, "--tls-key", key],
        capture_output=True, text=True, timeout=PATIENCE,
    )
    assert said.returncode == 2
    assert f"{key}: is not the key of the certificate in {certificate}" in said.stderr


def test_six_services_call_each_other_by_tls(folder, authority, monkeypatch):
    certificate, key = authority.make("node")
    variables = {
        "MEMQ_TLS_CERTIFICATE": certificate, "MEMQ_TLS_KEY": key, "MEMQ_TLS_TRUST": authority.root,
        "MEMQ_TLS_CLIENTS": "required",
        "MEMQ_PEERS_TLS_ENABLED": "true", "MEMQ_PEERS_TLS_TRUST": authority.root,
        "MEMQ_CLIENT_TLS_CA": authority.root, "MEMQ_CLIENT_TLS_CERTIFICATE": certificate, "MEMQ_CLIENT_TLS_KEY": key,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    with Processes(folder).start() as cluster:
        cluster.cli("topic", "create", "events", "--partitions", "3", "--set", "local.retention.bytes=0")
        values = [b"%d" % n for n in range(1_000)]
        cluster.cli("produce", "events", stdin=b"\n".join(values) + b"\n")
        cluster.cli("upload", "flush", "events")
        assert sorted(cluster.values("events")) == sorted(values)
        for name in SERVICES:
            with grpc.insecure_channel(f"127.0.0.1:{cluster.ports[name]}") as channel:
                with pytest.raises(grpc.RpcError) as error:
                    channel.unary_unary(HEALTH + "Check")(b"", timeout=PATIENCE)
                assert error.value.code() == grpc.StatusCode.UNAVAILABLE
