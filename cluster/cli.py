"""The command line: `vicinage`.

Heavy imports happen inside the commands, so that --help answers at once.
"""

import click

from cluster.commands.audit import audit
from cluster.commands.base import EPILOG, Group
from cluster.commands.cluster import cluster_group
from cluster.commands.collections import collection
from cluster.commands.config import config
from cluster.commands.dead_letters import dead_letters
from cluster.commands.demo import demo
from cluster.commands.keys import keys
from cluster.commands.models import model
from cluster.commands.observe import capacity, freshness, recall
from cluster.commands.platform import doctor, down, role, status, up
from cluster.commands.reindex import reindex
from cluster.commands.tenants import tenant


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vicinage")
def main() -> None:
    """Vicinage: a managed vector retrieval platform for many tenants."""


for command in (
    up,
    down,
    demo,
    status,
    role,
    doctor,
    tenant,
    keys,
    collection,
    reindex,
    capacity,
    freshness,
    recall,
):
    main.add_command(command)
for command in (audit, model, cluster_group, config, dead_letters):
    main.add_command(command)


if __name__ == "__main__":
    main()
