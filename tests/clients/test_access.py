"""The list of callers decides which grpcio clients may call: by certificate, key or socket.

The certificates are made here, with openssl. README.md lists the reasons of rejections.
"""

import contextlib
import os
import subprocess

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from test_python import ANONYMOUS, ROOT, TIMEOUT, pdp, serving, services

KEY = "a-key-of-a-test-and-no-secret"
CALLERS = f"""
[[caller]]
name = "orders"
spiffe = ["spiffe://shop/orders"]
rights = ["authorize"]

[[caller]]
name = "console"
bearer = ["console.txt"]
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
    """A certificate authority with a directory of its own."""

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
    authority.path("console.txt").write_text(KEY, encoding="utf-8")
    return authority


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    foreign = Authority(tmp_path_factory.mktemp("pki") / "theirs")
    foreign.sign("orders", "subjectAltName=URI:spiffe://shop/orders\nextendedKeyUsage=clientAuth\n")
    return foreign


@contextlib.contextmanager
def serve_with_callers(authority, auth, listen="127.0.0.1:0"):
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
    with serve_with_callers(authority, "optional") as address:
        yield address


def authorize(channel, request=PRICES, key=None):
    metadata = [("authorization", f"Bearer {key}")] if key else None
    stub = services.AuthorizationServiceStub(channel)
    return stub.Authorize(request, timeout=TIMEOUT, metadata=metadata)


def rejection(channel, *arguments, **more):
    """Returns the code and reason of a rejection."""
    with pytest.raises(grpc.RpcError) as rejected:
        authorize(channel, *arguments, **more)
    status = rpc_status.from_call(rejected.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "cedar-pdp"
    return rejected.value.code(), info.reason


UNKNOWN = (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")


def test_listed_certificate_is_accepted(authority, optional):
    with grpc.secure_channel(optional, authority.credentials("orders")) as channel:
        assert authorize(channel).decision == pdp.DECISION_ALLOW
        explained = pdp.AuthorizeRequest(explain=True)
        explained.MergeFrom(PRICES)
        missing = (grpc.StatusCode.PERMISSION_DENIED, "RIGHT_MISSING")
        assert rejection(channel, explained) == missing
        assert authorize(channel, explained, key=KEY).HasField("explanation")


def test_unlisted_certificate_is_rejected(authority, optional):
    with grpc.secure_channel(optional, authority.credentials("stranger")) as channel:
        assert rejection(channel) == UNKNOWN


def test_key_replaces_a_certificate(authority, optional):
    with grpc.secure_channel(optional, authority.credentials()) as channel:
        assert rejection(channel) == UNKNOWN
        assert authorize(channel, key=KEY).decision == pdp.DECISION_ALLOW
        wrong = (grpc.StatusCode.UNAUTHENTICATED, "KEY_UNKNOWN")
        assert rejection(channel, key=KEY + "x") == wrong
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def is_accepted(address, credentials):
    with grpc.secure_channel(address, credentials) as channel:
        try:
            return authorize(channel).decision == pdp.DECISION_ALLOW
        except grpc.RpcError as rejected:
            assert rejected.code() == grpc.StatusCode.UNAVAILABLE
            return False


def test_required_certificate_is_verified(authority, foreign):
    with serve_with_callers(authority, "required") as address:
        assert is_accepted(address, authority.credentials("orders"))
        assert not is_accepted(address, authority.credentials())
        foreign_credentials = grpc.ssl_channel_credentials(
            authority.path("ca.crt").read_bytes(),
            foreign.path("orders.key").read_bytes(),
            foreign.path("orders.crt").read_bytes(),
        )
        assert not is_accepted(address, foreign_credentials)
        with grpc.insecure_channel(address) as channel:
            with pytest.raises(grpc.RpcError) as rejected:
                authorize(channel)
            assert rejected.value.code() == grpc.StatusCode.UNAVAILABLE


def test_unix_socket_user_is_identified(authority, tmp_path):
    listen = f"unix:{tmp_path}/pdp.sock"
    with serve_with_callers(authority, "optional", listen=listen):
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(listen, options=options) as channel:
            assert authorize(channel).decision == pdp.DECISION_ALLOW
            named = pdp.AuthorizeRequest(principal={"type": "Platform::User", "id": "ines.varga"})
            named.MergeFrom(PRICES)
            not_allowed = (grpc.StatusCode.PERMISSION_DENIED, "IDENTITY_NOT_ALLOWED")
            assert rejection(channel, named) == not_allowed
