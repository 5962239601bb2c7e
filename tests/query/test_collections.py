"""Reads of a tenant's own collections take permits, and leave some to other tenants."""

from pathlib import Path

from gate import platform, problem

from vicinage.settings import GatewaySettings
from vicinage.tenant_context import TenantContext


def test_reading_and_deleting_collections_take_a_permit(tmp_path: Path) -> None:
    with platform(tmp_path, GatewaySettings(in_flight_max=2)) as call:
        _, key = call.tenant("bronze")
        call.collection(key)
        requests = [
            ("GET", "/v1/collections"),
            ("GET", "/v1/collections/c"),
            ("DELETE", "/v1/collections/c?confirm=c"),
        ]
        admission = call.state.pipeline.admission
        with admission.enter(TenantContext("loud")), admission.enter(TenantContext("louder", 4)):
            for method, path in requests:
                assert problem(call(method, path, key), 429, "overloaded")["retry_after_s"] > 0
        assert [call(method, path, key).status_code for method, path in requests] == [200, 200, 202]
        assert admission.in_flight == 0
