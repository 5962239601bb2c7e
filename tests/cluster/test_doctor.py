"""What `doctor` warns of: brokers on which any client can do anything."""

import pytest

from cluster.doctor import access_warning, examine
from vicinage.settings import Settings

HERE, AWAY = ["127.0.0.1:9092", "localhost:9092", "[::1]:9092"], ["127.0.0.1:9092", "broker-1:9092"]


@pytest.mark.parametrize(
    ("servers", "tenants", "authorizer", "security", "parts"),
    [
        (HERE, 1, False, "plaintext", 0),
        (HERE, 2, False, "plaintext", 2),
        (AWAY, 0, False, "plaintext", 2),
        (AWAY, 1, True, "plaintext", 1),
        (AWAY, 1, False, "sasl-tls", 1),
        (AWAY, 9, True, "sasl-tls", 0),
    ],
)
def test_what_lets_other_clients_in_is_warned_of(servers, tenants, authorizer, security, parts) -> None:
    said = access_warning(servers, security, tenants=tenants, authorizer=authorizer)
    assert ("authorizer" in said, "plaintext" in said) == (
        parts > 0 and not authorizer, parts > 0 and security == "plaintext",
    )  # fmt: skip
    assert len([part for part in said.split("; ") if part]) == parts


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_a_warning_is_no_failure_and_says_what_to_do(kafka_servers, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cluster.doctor._is_loopback", lambda _server: False)
    rows = examine(Settings(data=tmp_path / "data", log_url=f"kafka://{kafka_servers}"))
    [row] = [r for r in rows if r["check"] == "access"]
    assert row["ok"] is True
    assert "no authorizer" in row["detail"]
    assert "secure-kafka.md" in row["next"]
