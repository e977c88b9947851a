import threading

import pytest

from nixery.packing.packer import BackgroundStage

TIMEOUT = 10


def test_pieces_are_done_in_their_order() -> None:
    done: list[int] = []
    with BackgroundStage[int](done.append) as behind:
        for number in range(100):
            behind.give(number)
            # So the memory of all pieces but the last is free again.
            assert done[:number] == list(range(number))
        behind.wait()
        assert done == list(range(100))


def test_one_is_worked_on_while_the_caller_makes_the_next() -> None:
    made = threading.Event()
    seen: list[bool] = []
    with BackgroundStage[int](lambda _: seen.append(made.wait(TIMEOUT))) as behind:
        behind.give(1)
        made.set()
    assert seen == [True]


def test_a_failure_is_told_with_the_next_piece() -> None:
    def fail(piece: int) -> None:
        raise ValueError(piece)

    with BackgroundStage[int](fail) as behind:
        behind.give(1)
        with pytest.raises(ValueError, match="1"):
            behind.give(2)
        behind.wait()


def test_a_failure_of_the_last_piece_is_told_by_waiting() -> None:
    def fail(piece: int) -> None:
        raise ValueError(piece)

    with BackgroundStage[int](fail) as behind:
        behind.give(1)
        with pytest.raises(ValueError, match="1"):
            behind.wait()


def test_nothing_goes_on_after_the_end() -> None:
    threads = threading.active_count()
    done: list[int] = []
    with BackgroundStage[int](done.append) as behind:
        behind.give(1)
    assert done == [1]
    assert threading.active_count() == threads
