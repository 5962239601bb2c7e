"""The GPU wheel on a machine without a GPU reports that, and never ends this process."""

import pytest

from indexer.backends import cuda, open_backend
from vicinage.errors import Refused


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_missing_device_is_refused(device: str) -> None:
    with pytest.raises(Refused, match="0 GPUs"):
        open_backend(device)


def test_a_trial_without_a_device_ends_its_own_process_alone() -> None:
    assert (cuda.trial_error(0) or "").startswith("ended with")


def test_memory_of_no_device_is_refused() -> None:
    with pytest.raises(Refused):
        cuda.free_bytes(0)


def test_the_cpu_backend_runs_on_this_wheel_too() -> None:
    open_backend("cpu")
