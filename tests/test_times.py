from harness.times import utc


def test_a_moment_to_the_second_and_to_the_minute():
    ts = 1_790_000_000_999  # 20,717 days and 51,200 seconds
    assert utc(ts) == "2026-09-21 14:13:20"
    assert utc(ts, "minutes") == "2026-09-21 14:13"
