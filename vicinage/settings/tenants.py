"""Settings of the control plane: the audit chain."""

from pydantic import Field

from vicinage.settings.group import Group


class AuditSettings(Group):
    """tenants: the audit chain."""

    key_file: str = Field(
        default="",
        description=(
            "file of the key of the audit records' MACs, the same on every node and protected from "
            "writers of the catalog; created at the first start; empty: DATA/audit.key"
        ),
    )
