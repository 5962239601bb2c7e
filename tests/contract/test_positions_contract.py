"""The catalog's contract for ingest's positions, over each catalog."""

from catalogs import Catalog

from tenants.positions import PartitionState, Positions


def test_states_are_replaced_but_not_over_what_an_operator_decided(catalog: Catalog) -> None:
    positions = Positions(catalog.engine, catalog.clock)
    reading = PartitionState("acme", 0, "id", 5, "reading", 1)
    other = PartitionState("acme", 1, "id", 2, "waiting", 1)
    positions.save([reading, other])
    assert positions.of("acme") == positions.of() == [reading, other]
    halted = PartitionState(
        "acme", 0, "id", 7, "halted", 2, "offset_gone", "acme/0: offset 7 is gone"
    )
    positions.save([halted])
    assert positions.not_reading("acme") == [halted, other]
    assert positions.not_reading("umbrella") == positions.resuming() == []
    resuming = PartitionState("acme", 0, "id", 9, "resuming", 3)
    positions.save([resuming])
    positions.save([halted])
    assert positions.resuming() == [resuming]
    positions.resumed(PartitionState("acme", 0, "id", 8, "resuming", 3))
    assert positions.resuming() == [resuming], "another position was decided meanwhile"
    positions.resumed(resuming)
    [state] = [s for s in positions.of("acme") if s.partition == 0]
    assert (state.state, state.position, state.kind) == ("reading", 9, None)
