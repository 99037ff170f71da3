import threading
import time
from collections.abc import Iterator

import pytest

from megatron_longpo.inference.threads import in_threads


@pytest.mark.parametrize("number", [1, 3, 50])
def test_every_item_is_called_once_and_no_more_than_the_number_at_a_time(number: int) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def double(item: int) -> int:
        nonlocal running, most
        with lock:
            running, most = running + 1, max(most, running + 1)
        time.sleep(0.002)
        with lock:
            running -= 1
        return 2 * item

    found = dict(in_threads(double, range(40), number))
    assert found == {item: 2 * item for item in range(40)}
    assert most <= number


def test_items_are_taken_no_sooner_than_a_thread_is_free() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(20):
            taken += 1
            yield item

    for done, _ in enumerate(in_threads(lambda item: item, items(), 4), start=1):
        assert taken - done <= 4


@pytest.mark.parametrize("number", [1, 4])
def test_after_an_error_nothing_new_begins_and_what_was_under_way_still_arrives(number: int) -> None:
    begun = []

    def call(item: int) -> int:
        begun.append(item)
        if item == 5:
            raise KeyError("five")
        time.sleep(0.01)
        return item

    arrived = []
    with pytest.raises(KeyError, match="five"):
        arrived.extend(item for item, _ in in_threads(call, range(1000), number))
    assert len(begun) <= 5 + 2 * number
    assert sorted([*arrived, 5]) == sorted(begun)
