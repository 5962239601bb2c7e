"""The permissions that the platform and the producer of one tenant need in Kafka. Pure.

With an authorizer on the brokers and these permissions, a tenant's producer can append to its own
documents topic and to nothing else: neither to another tenant's topic nor to the vectors log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal

from tenants.entities import dead_topic, documents_topic

PREFIX: Final = "vicinage."
Resource = Literal["Topic", "Group", "Cluster"]
Pattern = Literal["literal", "prefixed"]


@dataclass(frozen=True, slots=True)
class Acl:
    """One permission: `principal` may do `operation` to a resource.

    The resource is the one named `name`, or, for pattern prefixed, each whose name starts with it.
    """

    principal: str
    resource: Resource
    name: str
    pattern: Pattern
    operation: str


def acls(platform: str) -> list[Acl]:
    """Returns the permissions of the platform's own principal (`User:vicinage`)."""
    topics = ("Read", "Write", "Create", "Delete", "Describe", "Describe_Configs", "Alter")
    return [
        *(Acl(platform, "Topic", PREFIX, "prefixed", operation) for operation in topics),
        *(
            Acl(platform, "Group", PREFIX, "prefixed", operation)
            for operation in ("Read", "Describe")
        ),
        Acl(platform, "Cluster", "kafka-cluster", "literal", "Idempotent_Write"),
    ]


def tenant_acls(tenant: str, principal: str) -> list[Acl]:
    """Returns the permissions of a tenant's producer.

    It may append to its documents topic, and read its dead letters.
    """
    return [
        *(
            Acl(principal, "Topic", documents_topic(tenant), "literal", operation)
            for operation in ("Write", "Describe")
        ),
        *(
            Acl(principal, "Topic", dead_topic(tenant), "literal", operation)
            for operation in ("Read", "Describe")
        ),
    ]


def commands(wanted: Sequence[Acl], servers: str) -> list[str]:
    """Returns the shell commands that create the permissions with Kafka's kafka-acls.sh."""
    lines = []
    for (principal, resource, name, pattern), group in groupby(
        wanted, lambda acl: (acl.principal, acl.resource, acl.name, acl.pattern)
    ):
        operations = " ".join(f"--operation {acl.operation.replace('_', '')}" for acl in group)
        of = "--cluster" if resource == "Cluster" else f"--{resource.lower()} '{name}'"
        prefixed = " --resource-pattern-type prefixed" if pattern == "prefixed" else ""
        lines.append(
            f"kafka-acls.sh --bootstrap-server {servers} --add --allow-principal '{principal}'"
            f" {operations} {of}{prefixed}"
        )
    return lines
