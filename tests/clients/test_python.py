"""Checks that a grpcio client gets the answers in cases.json, by the .proto files and by reflection.

Starts the server that CEDAR_PDP_TEST_BINARY names, by default target/debug/cedar-pdp. The examples
in Python and Rust run here, the one in Node in test_node.mjs.
"""

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "proto"))
pdp, services = grpc.protos_and_services("pdp/v1/authorization.proto")
store, store_services = grpc.protos_and_services("pdp/v1/policy_store.proto")

CASES = json.loads((ROOT / "tests/clients/cases.json").read_text(encoding="utf-8"))
SERVICES = ("pdp.v1.AuthorizationService", "pdp.v1.PolicyStoreService")
ANONYMOUS = ("--anonymous-principal", 'Platform::Visitor::"anonymous"')
# A time limit; nothing here takes long.
TIMEOUT = 30


def target():
    return Path(os.environ.get("CARGO_TARGET_DIR", "target"))


@contextlib.contextmanager
def serving(policies, *arguments, listen="127.0.0.1:0"):
    """Runs the server; yields the address that it printed."""
    binary = ROOT / os.environ.get("CEDAR_PDP_TEST_BINARY", target() / "debug/cedar-pdp")
    # The settings in the caller's environment must not apply.
    env = {name: value for name, value in os.environ.items() if not name.startswith("CEDAR_PDP_")}
    # Its default port is the same for all services.
    env["CEDAR_PDP_ADMIN_LISTEN"] = "off"
    command = [binary, "serve", "--policies", policies, "--listen", listen, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            yield re.fullmatch(r"listening on (\S+)\n", server.stdout.readline()).group(1)
        finally:
            server.terminate()
            assert server.wait(TIMEOUT) == 0


@pytest.fixture(scope="session")
def address():
    with serving(ROOT / "policies", *ANONYMOUS) as address:
        yield address


@pytest.fixture(scope="session")
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture(scope="session")
def client(channel):
    return services.AuthorizationServiceStub(channel)


@pytest.fixture(scope="session")
def revision(channel):
    status = store_services.PolicyStoreServiceStub(channel).GetStatus(
        store.GetStatusRequest(), timeout=TIMEOUT
    )
    return status.status.revision


def request(case):
    return json_format.ParseDict(case["request"], pdp.AuthorizeRequest())


def by_name(kind):
    return pytest.mark.parametrize("case", CASES[kind], ids=lambda case: case["name"])


def check_answer(answer, case, revision):
    assert pdp.Decision.Name(answer.decision) == case["decision"]
    assert list(answer.determining_policies) == case["determining_policies"]
    assert [error.policy_id for error in answer.errors] == case.get("errors", [])
    assert answer.revision == revision
    assert not answer.HasField("explanation")


def check_error(status, case):
    """Checks a google.rpc.Status."""
    assert status.code == getattr(grpc.StatusCode, case["code"]).value[0]
    [detail] = status.details
    if "field" in case:
        bad_request = error_details_pb2.BadRequest()
        assert detail.Unpack(bad_request)
        assert [violation.field for violation in bad_request.field_violations] == [case["field"]]
    else:
        info = error_details_pb2.ErrorInfo()
        assert detail.Unpack(info)
        assert (info.domain, info.reason) == ("cedar-pdp", case["reason"])


@by_name("answers")
def test_authorize_answers(client, revision, case):
    check_answer(client.Authorize(request(case), timeout=TIMEOUT), case, revision)


@by_name("errors")
def test_authorize_error_names_the_field(client, case):
    with pytest.raises(grpc.RpcError) as caught:
        client.Authorize(request(case), timeout=TIMEOUT)
    assert caught.value.code() == getattr(grpc.StatusCode, case["code"])
    check_error(rpc_status.from_call(caught.value), case)


def test_explanation_names_policy_and_position(client):
    explain_request = request(CASES["answers"][0])
    explain_request.explain = True
    [policy] = client.Authorize(explain_request, timeout=TIMEOUT).explanation.determining
    assert policy.policy_id == "invoices.parties-read"
    assert policy.effect == pdp.EFFECT_PERMIT
    assert policy.position.file == "invoices.cedar"
    assert policy.position.line > 0


def test_batch_keeps_order_and_revision(client, revision):
    # An error between answers belongs to its item alone.
    cases = [case for pair in zip(CASES["answers"], CASES["errors"]) for case in pair]
    batch = pdp.BatchAuthorizeRequest(requests=map(request, cases))
    answer = client.BatchAuthorize(batch, timeout=TIMEOUT)
    assert answer.revision == revision
    assert len(answer.results) == len(cases)
    for result, case in zip(answer.results, cases):
        if "decision" in case:
            assert result.WhichOneof("result") == "response"
            check_answer(result.response, case, revision)
        else:
            assert result.WhichOneof("result") == "error"
            check_error(result.error, case)


def test_empty_batch_has_the_revision(client, revision):
    answer = client.BatchAuthorize(pdp.BatchAuthorizeRequest(), timeout=TIMEOUT)
    assert (list(answer.results), answer.revision) == ([], revision)


def test_stream_answers_carry_correlation_ids(client, revision):
    # Ids from the top of the range: 64 bits, unsigned.
    cases = {2**64 - 1 - n: case for n, case in enumerate(CASES["answers"] + CASES["errors"])}
    sent = (
        pdp.StreamAuthorizeRequest(correlation_id=number, request=request(case))
        for number, case in cases.items()
    )
    stream = client.StreamAuthorize(sent, timeout=TIMEOUT)
    results = {result.correlation_id: result for result in stream}
    assert stream.code() == grpc.StatusCode.OK
    assert results.keys() == cases.keys()
    for number, case in cases.items():
        if "decision" in case:
            check_answer(results[number].response, case, revision)
        else:
            check_error(results[number].error, case)


def test_open_stream_answers_each_item(client, revision):
    case = CASES["answers"][0]
    requests = queue.SimpleQueue()
    stream = client.StreamAuthorize(iter(requests.get, None), timeout=TIMEOUT)
    for number in range(3):
        # Sends the next item only after the last answer.
        requests.put(pdp.StreamAuthorizeRequest(correlation_id=number, request=request(case)))
        result = next(stream)
        assert result.correlation_id == number
        check_answer(result.response, case, revision)
    requests.put(None)
    assert list(stream) == []
    assert stream.code() == grpc.StatusCode.OK


def test_every_kind_of_value_is_decoded(tmp_path):
    case = CASES["every_kind"]
    (tmp_path / "kinds.cedar").write_text("\n".join(case["policy"]), encoding="utf-8")
    with serving(tmp_path) as address, grpc.insecure_channel(address) as channel:
        client = services.AuthorizationServiceStub(channel)
        answer = client.Authorize(request(case), timeout=TIMEOUT)
    assert not answer.errors
    assert list(answer.determining_policies) == ["kinds.cedar#0"]
    assert answer.decision == pdp.DECISION_ALLOW


def test_missing_identity_needs_an_anonymous_principal():
    [case] = [case for case in CASES["answers"] if "principal" not in case["request"]]
    with serving(ROOT / "policies") as address, grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            services.AuthorizationServiceStub(channel).Authorize(request(case), timeout=TIMEOUT)
    check_error(
        rpc_status.from_call(caught.value), {"code": "INVALID_ARGUMENT", "field": "principal"}
    )


def test_health_knows_server_and_both_services(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", *SERVICES):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="pdp.v1.None"), timeout=TIMEOUT)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_policies_are_listed_in_pages(channel, revision):
    client = store_services.PolicyStoreServiceStub(channel)
    listed, token = [], ""
    while True:
        page = client.ListPolicies(
            store.ListPoliciesRequest(page_size=5, page_token=token), timeout=TIMEOUT
        )
        assert page.revision == revision
        listed += [policy.id for policy in page.policies]
        token = page.next_page_token
        if not token:
            break
    assert len(listed) == len(set(listed))
    for case in CASES["answers"]:
        assert set(case["determining_policies"]) <= set(listed)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services(channel, version):
    # The messages of both versions differ only in the name of their package.
    reflect = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    query = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = reflect(iter([query]), timeout=TIMEOUT)
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}


def test_reflection_alone_suffices_for_a_client(channel):
    # A separate pool: it contains only what the server has sent.
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    authorize = pool.FindServiceByName(SERVICES[0]).FindMethodByName("Authorize")
    request_class = message_factory.GetMessageClass(authorize.input_type)
    response_class = message_factory.GetMessageClass(authorize.output_type)
    call = channel.unary_unary(
        f"/{authorize.containing_service.full_name}/{authorize.name}",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )
    for case in CASES["answers"]:
        message = json_format.ParseDict(case["request"], request_class(), descriptor_pool=pool)
        answer = call(message, timeout=TIMEOUT)
        fields = json_format.MessageToDict(answer, preserving_proto_field_name=True)
        assert fields["decision"] == case["decision"]
        assert fields.get("determining_policies", []) == case["determining_policies"]

    # Reflection includes the details of errors.
    [case] = [case for case in CASES["errors"] if case.get("field") == "resource.id"]
    with pytest.raises(grpc.RpcError) as caught:
        call(json_format.ParseDict(case["request"], request_class()), timeout=TIMEOUT)
    metadata = dict(caught.value.trailing_metadata())
    status = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("google.rpc.Status")
    ).FromString(metadata["grpc-status-details-bin"])
    bad_request = message_factory.GetMessageClass(
        pool.FindMessageTypeByName(status.details[0].type_url.rpartition("/")[2])
    ).FromString(status.details[0].value)
    assert bad_request.field_violations[0].field == "resource.id"


def test_unix_socket_client_must_set_an_authority(tmp_path):
    case = CASES["answers"][0]
    socket = tmp_path / "pdp.sock"
    with serving(ROOT / "policies", listen=f"unix:{socket}") as address:
        assert address == f"unix:{socket}"
        # By default grpcio sends the socket's path, percent-encoded, as the authority. That is
        # invalid, so the HTTP/2 stream is rejected and the call fails, which is no DENY.
        with grpc.insecure_channel(address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                services.AuthorizationServiceStub(channel).Authorize(
                    request(case), timeout=TIMEOUT
                )
        assert caught.value.code() == grpc.StatusCode.INTERNAL

        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(address, options=options) as channel:
            client = services.AuthorizationServiceStub(channel)
            answer = client.Authorize(request(case), timeout=TIMEOUT)
        assert pdp.Decision.Name(answer.decision) == case["decision"]
    assert not socket.exists()


def test_cases_include_every_row_of_the_readme():
    table = (ROOT / "policies/README.md").read_text(encoding="utf-8").split("| principal |")[1]
    rows = [line.split("|")[1:-1] for line in table.splitlines()[2:] if line.startswith("|")]
    written = set()
    for row in rows:
        principal, action, resource, _, _, policies = (re.findall("`(.+?)`", cell) for cell in row)
        # A principal is shortened to its id, or printed in full.
        id = re.sub('.*"(.*)"', r"\1", principal[0])
        written.add((id, action[0], resource[0], f"DECISION_{row[4].strip()}", *policies))
    held = set()
    for case in CASES["answers"]:
        uids = (case["request"].get(part) for part in ("principal", "action", "resource"))
        ids = (uid["id"] if uid else "anonymous" for uid in uids)
        held.add((*ids, case["decision"], *case["determining_policies"]))
    assert len(rows) >= 15
    assert written <= held


def run_example(command, revision):
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600
    )
    expected = "\n".join(CASES["example_output"]).replace("{revision}", revision)
    return done.stdout.rstrip("\n"), expected


def test_python_example(address, revision):
    printed, expected = run_example(
        [sys.executable, "examples/python/authorize.py", address], revision
    )
    assert printed == expected


def test_rust_example(address, revision):
    command = ["cargo", "run", "--quiet", "--example", "rust_client", "--", address]
    printed, expected = run_example(command, revision)
    assert printed == expected.replace("INVALID_ARGUMENT", "InvalidArgument")
