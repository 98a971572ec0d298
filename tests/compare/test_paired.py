import numpy as np
import pytest
from scipy import stats

from harness.compare.paired import (
    MIN_CLUSTERS,
    bootstrap,
    compare_examples,
    holm,
    mean_difference,
    percentile_interval,
    percentile_p,
    sign_test,
    simultaneous,
    sum_clusters,
    t_interval,
    verdict,
)


def test_the_difference_is_that_of_the_means_over_tokens():
    a, b, tokens = np.array([6.0, 2.0]), np.array([3.0, 4.0]), np.array([3, 1])
    assert mean_difference((b - a)[:, None], tokens).tolist() == [-0.25]  # 7/4 - 8/4, not the mean of -1 and 2
    assert b.sum() / tokens.sum() - a.sum() / tokens.sum() == -0.25


def test_examples_of_one_id_are_summed_in_the_order_of_the_first():
    sums = sum_clusters(np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]), ["x", "y", "x"])
    assert sums.tolist() == [[5.0, 50.0], [2.0, 20.0]]
    assert sum_clusters(np.array([3, 4]), ["x", "x"]).tolist() == [7.0]


def test_a_resample_is_a_ratio_of_sums_over_the_drawn_examples():
    differences, tokens = np.array([[1.0, 5.0], [-2.0, 5.0]]), np.array([1.0, 3.0])
    resampled = bootstrap(differences, tokens, resamples=4000)
    values, counts = np.unique(resampled[:, 0], return_counts=True)
    assert values.tolist() == [-2 / 3, -1 / 4, 1.0]  # the second twice, both, the first twice
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    both = resampled[:, 0] == -1 / 4
    assert set(resampled[both, 1]) == {2.5}  # every model sees the same draw


def test_the_seed_decides_and_blocks_do_not(monkeypatch):
    rng = np.random.default_rng(3)
    differences, tokens = rng.normal(size=(30, 2)), np.ones(30)
    first = bootstrap(differences, tokens, resamples=100, seed=1)
    assert np.array_equal(first, bootstrap(differences, tokens, resamples=100, seed=1))
    assert not np.array_equal(first, bootstrap(differences, tokens, resamples=100, seed=2))
    monkeypatch.setattr("harness.compare.paired._BLOCK", 70)  # two resamples at a time
    np.testing.assert_allclose(bootstrap(differences, tokens, resamples=100, seed=1), first, rtol=1e-12)


def test_the_interval_is_that_of_scipys_bootstrap():
    rng = np.random.default_rng(4)
    tokens = np.ceil(rng.lognormal(3, 0.5, 1000))
    differences = tokens * rng.normal(0.01, 0.2, 1000)
    low, high = percentile_interval(bootstrap(differences[:, None], tokens), 1000)
    theirs = stats.bootstrap(
        (differences, tokens),
        lambda d, w, axis: d.sum(axis) / w.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (low[0], high[0]) == (pytest.approx(theirs.low, abs=width / 30), pytest.approx(theirs.high, abs=width / 30))


def test_percentiles_lie_further_out_for_few_examples():
    evenly = np.arange(100_001.0)[:, None] / 100_000  # the p-th percentile is p
    for n in (20, 1000):
        tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
        low, high = percentile_interval(evenly, n)
        assert (low[0], high[0]) == (pytest.approx(tail), pytest.approx(1 - tail))
    low, _ = percentile_interval(evenly, 20)
    assert low[0] == pytest.approx(0.0159, abs=1e-4)  # Φ(-2.0930·√(20/19)) = Φ(-2.1474)


def test_p_is_where_the_interval_comes_to_exclude_zero():
    rng = np.random.default_rng(6)
    resampled = rng.normal(0.2, 0.1, size=(9_999, 1))
    (p,) = percentile_p(resampled, 50)
    inside, _ = percentile_interval(resampled, 50, 1 - p * 0.97)
    outside, _ = percentile_interval(resampled, 50, 1 - p * 1.03)
    assert inside[0] < 0 < outside[0]
    assert percentile_p(np.zeros((99, 1)), 50) == [1.0]
    assert 0 < percentile_p(np.ones((9_999, 1)), 1000)[0] < 3e-4


def test_the_t_interval_is_students_where_all_examples_are_as_long():
    means = np.random.default_rng(10).normal(0.1, 0.5, size=25)
    low, high = t_interval((7 * means)[:, None], np.full(25, 7), 0.99)
    theirs = stats.ttest_1samp(means, 0).confidence_interval(0.99)
    assert (low[0], high[0]) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_the_t_interval_of_a_ratio_by_hand():
    low, high = t_interval(np.array([[2.0], [1.0], [3.0]]), np.array([1, 2, 3]))
    # 6 / 6 = 1; residuals 1, -1, 0: √(3/2 · 2) / 6
    half = stats.t.ppf(0.975, 2) * np.sqrt(3) / 6
    assert (low[0], high[0]) == (pytest.approx(1 - half), pytest.approx(1 + half))


def test_the_sign_test_is_exact_and_leaves_out_zeros():
    assert sign_test(np.array([-1.0] * 8 + [1.0])) == pytest.approx(2 * (1 + 9) / 2**9)
    assert sign_test(np.array([-1.0] * 8 + [1.0] + [0.0] * 5)) == pytest.approx(20 / 512)
    assert sign_test(np.array([1.0, -1.0])) == 1.0
    assert sign_test(np.zeros(3)) == 1.0
    for up, down in ((3, 17), (60, 40), (520, 480)):
        ours = sign_test(np.array([1.0] * up + [-1.0] * down))
        assert ours == pytest.approx(stats.binomtest(up, up + down).pvalue, rel=1e-9)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3·0.01, then 2·0.03, and 0.04 no lower
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_intervals_that_hold_together_share_what_may_fail():
    assert simultaneous(1) == pytest.approx(0.95)
    assert simultaneous(5) == pytest.approx(0.99)


def test_what_an_interval_says():
    assert [verdict(-2, -1), verdict(1, 2), verdict(-1, 1), verdict(0, 1)] == [
        "better",
        "worse",
        "not told apart",
        "not told apart",
    ]
    assert verdict(float("nan"), float("nan")) == "no verdict"


def test_copies_of_an_example_make_nothing_surer():
    rng = np.random.default_rng(7)
    differences, tokens = rng.normal(0.1, 1, size=(40, 1)), rng.integers(5, 50, 40)
    ids = [f"e{i}" for i in range(40)]
    (once,) = compare_examples(differences, tokens, ids)
    (thrice,) = compare_examples(np.repeat(differences, 3, axis=0), np.repeat(tokens, 3), list(np.repeat(ids, 3)))
    assert thrice == pytest.approx(once)
    assert once.num_examples == 40


def test_too_few_examples_have_a_difference_and_no_interval():
    n = MIN_CLUSTERS - 1
    (found,) = compare_examples(np.full((n, 1), -2.0), np.ones(n), [str(i) for i in range(n)])
    assert (found.difference, found.lower, found.num_examples) == (-2.0, 1.0, n)
    assert np.isnan([found.low, found.high, found.p]).all()


def test_each_of_many_is_corrected_for_all():
    rng = np.random.default_rng(8)
    differences, tokens = rng.normal(0.6, 1, size=(50, 1)), np.ones(50)
    ids = [str(i) for i in range(50)]
    (alone,) = compare_examples(differences, tokens, ids)
    among = compare_examples(np.column_stack([differences, rng.normal(0, 1, size=(50, 9))]), tokens, ids)
    assert among[0].low < alone.low < alone.high < among[0].high
    assert among[0].difference == pytest.approx(alone.difference)
    assert among[0].p == pytest.approx(10 * alone.p) and alone.p < 0.05  # the smallest of ten


def coverage(n, means):
    """How often no difference lies inside the interval of ``n`` examples; ``means`` draws them, nats per token."""
    rng = np.random.default_rng(9)
    simulations = 1500
    inside = 0
    for i in range(simulations):
        tokens = np.ceil(rng.lognormal(3, 0.7, n))
        differences = tokens * means(rng, n) + np.sqrt(tokens) * rng.normal(0, 0.2, n)
        low, high = percentile_interval(bootstrap(differences[:, None], tokens, resamples=500, seed=i), n)
        inside += low[0] <= 0 <= high[0]
    return inside / simulations


def test_no_difference_lies_inside_the_interval_95_times_in_100():
    assert coverage(100, lambda rng, n: rng.normal(0, 0.03, n)) == pytest.approx(0.95, abs=0.02)


def test_nearly_as_often_where_differences_are_few_and_skewed():
    assert 0.90 < coverage(20, lambda rng, n: 0.2 * (rng.exponential(1, n) - 1)) < 0.95
