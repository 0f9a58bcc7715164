"""A grpcio client is let in, or not, as the list of callers says: by certificate, by key, by socket.

Certificates are made here, with openssl. Of what each refusal is called, README.md tells.
"""

import contextlib
import os
import subprocess

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from test_python import ANONYMOUS, PATIENCE, ROOT, pdp, serving, services

KEY = "a-key-of-a-test-and-no-secret"
CALLERS = f"""
[[caller]]
name = "orders"
spiffe = ["spiffe://shop/orders"]
rights = ["authorize"]

[[caller]]
name = "desk"
bearer = ["desk.txt"]
rights = ["authorize", "explain"]

[[caller]]
name = "neighbour"
uid = [{os.getuid()}]
rights = ["authorize"]
identities = ["anonymous"]
"""
PRICES = pdp.AuthorizeRequest(
    action={"type": "Invoicing::Action", "id": "readPriceList"},
    resource={"type": "Invoicing::PriceList", "id": "2026-standard"},
)


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """Signs certificates, in a directory of its own."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", "/CN=authority"),
            *("-keyout", self.path("ca.key"), "-out", self.path("ca.crt")),
        )

    def path(self, name):
        return self.directory / name

    def sign(self, name, extensions):
        self.path(f"{name}.ext").write_text(extensions, encoding="utf-8")
        openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}"),
            *("-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.csr")),
        )
        openssl(
            *("x509", "-req", "-in", self.path(f"{name}.csr"), "-days", "1"),
            *("-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key"), "-CAcreateserial"),
            *("-extfile", self.path(f"{name}.ext"), "-out", self.path(f"{name}.crt")),
        )

    def credentials(self, name=None):
        def read(file):
            return self.path(file).read_bytes()

        if name is None:
            return grpc.ssl_channel_credentials(read("ca.crt"))
        return grpc.ssl_channel_credentials(
            read("ca.crt"), read(f"{name}.key"), read(f"{name}.crt")
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("pki") / "ours")
    authority.sign("pdp", "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n")
    for name in ("orders", "stranger"):
        names = f"subjectAltName=URI:spiffe://shop/{name}\nextendedKeyUsage=clientAuth\n"
        authority.sign(name, names)
    authority.path("desk.txt").write_text(KEY, encoding="utf-8")
    return authority


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    foreign = Authority(tmp_path_factory.mktemp("pki") / "theirs")
    foreign.sign("orders", "subjectAltName=URI:spiffe://shop/orders\nextendedKeyUsage=clientAuth\n")
    return foreign


@contextlib.contextmanager
def house(authority, auth, listen="127.0.0.1:0"):
    """Runs the service with TLS and the list of callers."""
    callers = authority.path("callers.toml")
    callers.write_text(CALLERS, encoding="utf-8")
    tls = (
        *("--tls-cert", authority.path("pdp.crt"), "--tls-key", authority.path("pdp.key")),
        *("--tls-client-ca", authority.path("ca.crt"), "--tls-client-auth", auth),
        *("--callers", callers),
    )
    with serving(ROOT / "policies", *ANONYMOUS, *tls, listen=listen) as address:
        yield address.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def optional(authority):
    with house(authority, "optional") as address:
        yield address


def ask(channel, request=PRICES, key=None):
    metadata = [("authorization", f"Bearer {key}")] if key else None
    stub = services.AuthorizationServiceStub(channel)
    return stub.Authorize(request, timeout=PATIENCE, metadata=metadata)


def refusal(channel, *arguments, **more):
    """The code of a refusal, and the reason that it gives."""
    with pytest.raises(grpc.RpcError) as refused:
        ask(channel, *arguments, **more)
    status = rpc_status.from_call(refused.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "cedar-pdp"
    return refused.value.code(), info.reason


UNKNOWN = (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")


def test_with_a_certificate_that_is_listed(authority, optional):
    with grpc.secure_channel(optional, authority.credentials("orders")) as channel:
        assert ask(channel).decision == pdp.DECISION_ALLOW
        why = pdp.AuthorizeRequest(explain=True)
        why.MergeFrom(PRICES)
        missing = (grpc.StatusCode.PERMISSION_DENIED, "RIGHT_MISSING")
        assert refusal(channel, why) == missing
        assert ask(channel, why, key=KEY).HasField("explanation")


def test_with_a_certificate_that_is_not_listed(authority, optional):
    with grpc.secure_channel(optional, authority.credentials("stranger")) as channel:
        assert refusal(channel) == UNKNOWN


def test_without_a_certificate(authority, optional):
    with grpc.secure_channel(optional, authority.credentials()) as channel:
        assert refusal(channel) == UNKNOWN
        assert ask(channel, key=KEY).decision == pdp.DECISION_ALLOW
        wrong = (grpc.StatusCode.UNAUTHENTICATED, "KEY_UNKNOWN")
        assert refusal(channel, key=KEY + "x") == wrong
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def is_let_in(address, credentials):
    with grpc.secure_channel(address, credentials) as channel:
        try:
            return ask(channel).decision == pdp.DECISION_ALLOW
        except grpc.RpcError as refused:
            assert refused.code() == grpc.StatusCode.UNAVAILABLE
            return False


def test_where_a_certificate_is_required(authority, foreign):
    with house(authority, "required") as address:
        assert is_let_in(address, authority.credentials("orders"))
        assert not is_let_in(address, authority.credentials())
        theirs = grpc.ssl_channel_credentials(
            authority.path("ca.crt").read_bytes(),
            foreign.path("orders.key").read_bytes(),
            foreign.path("orders.crt").read_bytes(),
        )
        assert not is_let_in(address, theirs)
        with grpc.insecure_channel(address) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                ask(channel)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_behind_a_unix_socket(authority, tmp_path):
    listen = f"unix:{tmp_path}/pdp.sock"
    with house(authority, "optional", listen=listen):
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(listen, options=options) as channel:
            assert ask(channel).decision == pdp.DECISION_ALLOW
            named = pdp.AuthorizeRequest(principal={"type": "Platform::User", "id": "ines.varga"})
            named.MergeFrom(PRICES)
            not_allowed = (grpc.StatusCode.PERMISSION_DENIED, "IDENTITY_NOT_ALLOWED")
            assert refusal(channel, named) == not_allowed
