"""Exact bounds against the sums they are defined by, and quantiles far out."""

from math import comb

import numpy as np
import pytest

from common.export.bounds import at_least, claims, lower, pictures_needed, tail_quantile, upper


@pytest.mark.parametrize(("hits", "n"), [(1, 1), (3, 10), (19, 20), (95, 100), (500, 500)])
def test_at_the_bound_as_many_hits_come_by_chance_in_one_case_of_twenty(hits, n):
    share = at_least(hits, n)
    chance = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits, n + 1))
    assert chance == pytest.approx(0.05, rel=1e-6)


def test_bounds_are_told_rounded_to_the_cautious_side():
    assert (lower(0.98951), lower(0.99), lower(1.0)) == ("98.95%", "99.00%", "100.00%")
    assert (upper(0.00507), upper(0.01), upper(0.0)) == ("0.51%", "1.00%", "0.00%")
    assert lower(at_least(284, 284)) == "98.95%"


def test_bounds_at_the_ends_and_of_millions():
    assert at_least(0, 10) == at_least(0, 0) == 0.0
    assert at_least(50, 50, level=0.5) == pytest.approx(0.5 ** (1 / 50))
    n, hits = 1_500_000, 1_485_000
    assert at_least(hits, n) == pytest.approx(0.99 - 1.645 * (0.99 * 0.01 / n) ** 0.5, abs=1e-5)


@pytest.mark.parametrize(("misses", "pictures"), [(0, 299), (1, 473), (5, 1049), (10, 1693)])
def test_how_many_pictures_99_percent_takes(misses, pictures):
    assert pictures_needed(0.99, misses) == pictures
    assert (
        at_least(pictures - misses, pictures)
        >= 0.99
        > at_least(pictures - 1 - misses, pictures - 1)
    )
    assert claims(pictures - misses, pictures, 0.99)
    assert not claims(np.int64(pictures - 1 - misses), np.int64(pictures - 1), 0.99)


@pytest.mark.parametrize("draw", ["exponential", "standard_normal", "gumbel"])
def test_tail_quantile_loses_what_it_says_and_jumps_less_than_an_order_statistic(draw):
    rng = np.random.default_rng(3)
    fresh = np.sort(getattr(rng, draw)(size=200_000))
    samples = [getattr(rng, draw)(size=400) for _ in range(200)]
    lost = 1 - np.searchsorted(fresh, [tail_quantile(s, 0.007) for s in samples]) / len(fresh)
    counted = 1 - np.searchsorted(fresh, [np.sort(s)[-3] for s in samples]) / len(
        fresh
    )  # 3 of 400 is 0.75 %
    assert 0.002 < lost.mean() < 0.0095
    assert lost.std() < counted.std()


def test_tail_quantile_of_few_values_and_of_large_shares():
    assert tail_quantile(np.arange(49.0), 0.007) == 48.0, "too few for a fit: the largest"
    assert tail_quantile(np.arange(101.0), 0.25) == 75.0
