"""The end of an essential thread is reported."""

import threading

import pytest
from resources import eventually

from vicinage.threads import EssentialThread, ThreadEnded, on_thread_death


def fails() -> None:
    raise ZeroDivisionError("the work is broken")


@pytest.mark.parametrize(
    ("work", "kind"), [(fails, ZeroDivisionError), (lambda: None, ThreadEnded)]
)
def test_the_end_of_a_thread_is_heard_of_once(work, kind) -> None:
    heard: list[BaseException] = []
    thread = EssentialThread("worker", work, on_death=heard.append)
    thread.start()
    thread.join(5)
    assert [type(error) for error in heard] == [kind]


def test_a_thread_that_was_told_to_stop_may_end_in_any_way() -> None:
    heard: list[BaseException] = []
    for work in (fails, lambda: None):
        thread = EssentialThread("worker", work, stopping=lambda: True, on_death=heard.append)
        thread.start()
        thread.join(5)
    assert heard == []


def test_the_handler_of_the_process_hears_of_threads_without_one_of_their_own() -> None:
    heard: list[BaseException] = []
    on_thread_death(heard.append)
    try:
        EssentialThread("worker", fails).start()
        eventually(lambda: heard)
    finally:
        on_thread_death(None)
    assert isinstance(heard[0], ZeroDivisionError)


def test_without_a_handler_it_dies_as_any_thread_does() -> None:
    heard: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, heard.append
    try:
        thread = EssentialThread("worker", fails)
        thread.start()
        thread.join(5)
    finally:
        threading.excepthook = before
    assert heard[0].exc_type is ZeroDivisionError
