"""Asks a running cedar-pdp for decisions. Takes its address; by default 127.0.0.1:50051."""

import sys
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# Compiles the .proto files on import, and searches them along the path. To generate code once, for
# editor support: `python -m grpc_tools.protoc`.
sys.path.append(str(Path(__file__).resolve().parents[2] / "proto"))
pdp, services = grpc.protos_and_services("pdp/v1/authorization.proto")


def user(name):
    return pdp.EntityUid(type="Platform::User", id=name)


def action(name):
    return pdp.EntityUid(type="Invoicing::Action", id=name)


def invoice(number):
    return pdp.EntityUid(type="Invoicing::Invoice", id=number)


def print_answer(client, title, request):
    """Sends a request, and prints the answer, or the invalid field."""
    print(f"{title}:")
    try:
        # A call without a timeout waits forever.
        answer = client.Authorize(request, timeout=5)
    except grpc.RpcError as error:
        print(f"  {error.code().name}: {error.details()}")
        # The status with its details, or None if the server sent none.
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            bad_request = error_details_pb2.BadRequest()
            if detail.Unpack(bad_request):  # False for a detail of another type.
                for violation in bad_request.field_violations:
                    print(f"  the field at fault: {violation.field}")
        return
    # In your own code: proceed only if `answer.decision == pdp.DECISION_ALLOW`.
    print(f"  {pdp.Decision.Name(answer.decision)}")
    print(f"  determined by: {', '.join(answer.determining_policies) or 'no policy'}")
    print(f"  revision: {answer.revision}")


def main():
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    # For a Unix socket: "unix:/run/pdp.sock" and options=[("grpc.default_authority", "localhost")].
    # Without the option grpcio sends the path as the host, and every call fails with INTERNAL.
    with grpc.insecure_channel(address) as channel:
        client = services.AuthorizationServiceStub(channel)

        approve = pdp.AuthorizeRequest(
            principal=user("marta.okafor"),
            action=action("approveInvoice"),
            resource=invoice("INV-2043"),
        )
        print_answer(client, "Marta approves a large invoice", approve)

        # A context value names its Cedar type. Accessing an entry of the map creates it.
        approve.context["mfa"].bool = True
        print_answer(client, "Marta does so with a second factor", approve)

        # No principal: the service must have been started with --anonymous-principal. Note that
        # `principal=None` also means no principal.
        read_price_list = pdp.AuthorizeRequest(
            action=action("readPriceList"),
            resource=pdp.EntityUid(type="Invoicing::PriceList", id="2026-standard"),
        )
        print_answer(client, "Anyone reads the price list", read_price_list)

        # An unset id is an error; an empty one is a valid id.
        forgotten_id = pdp.AuthorizeRequest(
            principal=user("felix.brandt"),
            action=action("readInvoice"),
            resource=pdp.EntityUid(type="Invoicing::Invoice"),
        )
        print_answer(client, "Felix reads an invoice without an id", forgotten_id)


if __name__ == "__main__":
    main()
