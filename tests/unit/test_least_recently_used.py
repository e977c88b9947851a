from nixery.caching import LRUCache


def test_what_was_not_asked_for_goes_first() -> None:
    kept: LRUCache[str, int] = LRUCache(3 * 1512)
    for number, key in enumerate("abc"):
        kept.put(key, number, 1000)
    assert kept.get("a") == 0
    kept.put("d", 3, 1000)
    assert [kept.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_a_value_that_is_replaced_gives_its_room_back() -> None:
    kept: LRUCache[str, int] = LRUCache(2 * 1512)
    for number in range(10):
        kept.put("a", number, 1000)
    kept.put("b", 1, 1000)
    assert (kept.get("a"), kept.get("b")) == (9, 1)


def test_what_is_too_large_is_not_kept_and_displaces_nothing() -> None:
    kept: LRUCache[str, int] = LRUCache(2000)
    kept.put("a", 1, 100)
    kept.put("b", 2, 1999)
    assert (kept.get("a"), kept.get("b")) == (1, None)


def test_entries_without_content_take_room_as_well() -> None:
    kept: LRUCache[int, None] = LRUCache(100_000)
    for number in range(10_000):
        kept.put(number, None, 0)
    assert len(kept._entries) < 200


def test_discarding() -> None:
    kept: LRUCache[str, int] = LRUCache(10_000)
    kept.put("a", 1, 1)
    kept.discard("a")
    kept.discard("a")
    assert kept.get("a") is None
    assert kept._used == 0
