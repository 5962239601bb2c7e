"""Settings of the control plane: the audit chain."""

from pydantic import Field

from vicinage.settings.group import Group


class AuditSettings(Group):
    """tenants: the audit chain."""

    key_file: str = Field(
        default="",
        description=(
            "file of the key of the audit records' MACs, the same on every node and out of reach "
            "of those who can write to the catalog; made at the first start; empty: "
            "DATA/audit.key"
        ),
    )
