import pytest

from harness.lr_schedules import lr_multiplier


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 1.0),
        ("linear", 3, 0.25),
        ("cosine", 0, 1.0),
        ("cosine", 2, 0.5),
        ("cosine", 3, 0.14644660940672627),  # (1 + cos(3π/4)) / 2
        ("constant", 3, 1.0),
    ],
)
def test_multiplier_over_four_steps(schedule, step, expected):
    assert lr_multiplier(schedule, step, 4) == pytest.approx(expected, abs=1e-12)


def test_warmup_rises_to_the_peak_and_the_schedule_covers_the_rest():
    assert [lr_multiplier("linear", step, 6, warmup_steps=2) for step in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_no_step_is_trained_at_zero():
    assert lr_multiplier("linear", 9, 10) > 0
    assert lr_multiplier("cosine", 9, 10) > 0


def test_unknown_schedule():
    with pytest.raises(ValueError, match="use linear, cosine or constant"):
        lr_multiplier("exponential", 0, 1)  # pyright: ignore[reportArgumentType]
