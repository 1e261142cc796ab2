"""The part of Envoy's external processing protocol that an observer reads, as protobuf classes made here.

Field numbers are those of envoy/service/ext_proc/v3/external_processor.proto and envoy/config/core/v3/base.proto;
fields that are not listed are skipped, as protobuf does with what it does not know. docs/decisions/0007 says why these
are not from a package of compiled protos.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "envoy.service.ext_proc.v3"
SERVICE = f"{PACKAGE}.ExternalProcessor"

FIELDS = {
    "HeaderValue": {"key": (1, "string"), "value": (2, "string"), "raw_value": (3, "bytes")},
    "HeaderMap": {"headers": (1, "repeated HeaderValue")},
    "HttpHeaders": {"headers": (1, "HeaderMap"), "end_of_stream": (3, "bool")},
    "HttpBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "HttpTrailers": {"trailers": (1, "HeaderMap")},
    "ProcessingRequest": {
        "request_headers": (2, "HttpHeaders"),
        "response_headers": (3, "HttpHeaders"),
        "request_body": (4, "HttpBody"),
        "response_body": (5, "HttpBody"),
        "request_trailers": (6, "HttpTrailers"),
        "response_trailers": (7, "HttpTrailers"),
    },
}
ONE_OF = {"ProcessingRequest": "request"}
"""All fields of these messages exclude each other; the name of that choice."""
SCALARS = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "bool": FieldDescriptorProto.TYPE_BOOL,
}


def _compiled() -> Any:
    file = FileDescriptorProto(name="visionloop_ext_proc.proto", package=PACKAGE, syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        if name in ONE_OF:
            message.oneof_decl.add(name=ONE_OF[name])
        for field_name, (number, described) in fields.items():
            *repeated, kind = described.split()
            field = message.field.add(name=field_name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
            if repeated:
                field.label = FieldDescriptorProto.LABEL_REPEATED
            if name in ONE_OF:
                field.oneof_index = 0
            if kind in SCALARS:
                field.type = SCALARS[kind]
            else:
                field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.ProcessingRequest"))


ProcessingRequest: Any = _compiled()
"""One message from Envoy: a head, a piece of a body, or trailers."""
