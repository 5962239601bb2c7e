"""Checks, for `vicinage doctor`, whether the brokers restrict what clients may do."""

from typing import Final

from vicinage.errors import Unavailable
from vicinage.log.kafka_clients import open_client
from vicinage.log.kafka_facts import CALL_MS
from vicinage.log.kafka_security import client_options
from vicinage.settings import KafkaSettings

SCHEME: Final = "kafka://"


def servers_of(log_url: str) -> list[str]:
    """Returns the brokers of a log's URL, as HOST:PORT; [] if the log is not on Kafka."""
    return log_url.removeprefix(SCHEME).rstrip("/").split(",") if log_url.startswith(SCHEME) else []


def has_authorizer(log_url: str, kafka: KafkaSettings) -> bool:
    """Returns whether the brokers check permissions. Raises Unavailable.

    A broker that denies this client the listing of permissions has an authorizer, too.
    """
    from kafka import KafkaAdminClient
    from kafka.admin import (
        ACLFilter,
        ACLOperation,
        ACLPermissionType,
        ACLResourcePatternType,
        ResourcePatternFilter,
        ResourceType,
    )
    from kafka.errors import ClusterAuthorizationFailedError, KafkaError, SecurityDisabledError

    topic = ResourcePatternFilter(
        ResourceType.TOPIC, "vicinage.vectors", ACLResourcePatternType.LITERAL
    )
    query = ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, topic)
    try:
        servers, security = servers_of(log_url), client_options(kafka)
        admin = open_client(
            KafkaAdminClient, servers, security, answer_ms=CALL_MS, request_timeout_ms=CALL_MS
        )
        try:
            admin.describe_acls(query)
        finally:
            admin.close()
    except SecurityDisabledError:
        return False
    except ClusterAuthorizationFailedError:
        return True
    except KafkaError as error:
        raise Unavailable(
            f"the log is unavailable (reading permissions): {error}", dependency="log"
        ) from error
    return True
