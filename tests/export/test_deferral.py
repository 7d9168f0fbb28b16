"""The rule that sends photos to the server: what it looks at, how it is fitted, what it is
worth.
"""

import json

import numpy as np
import pytest

from common.classes import ClassTree
from common.export.browser import deferral
from common.export.browser.deferral import (
    Rule,
    fit,
    fit_deferral,
    from_json,
    hybrid_accuracy,
    judge_deferral,
    report_lines,
    signals,
)

TREE = ClassTree(
    ("apple", "basil", "corn"), (("healthy", "rust", "scab"), ("healthy",), ("blight", "healthy"))
)


def world(n: int, seed: int, browser: float = 0.8, server: float = 0.95) -> tuple[np.ndarray, ...]:
    """Photos whose confidence tells, though not surely, whether the browser is right; species 2
    fools it more often.
    """
    rng = np.random.default_rng(seed)
    species = rng.integers(0, 3, n)
    hard = rng.random(n) < (1 - browser) * np.array([0.7, 0.7, 1.6])[species]
    values = np.stack(
        [
            np.where(hard, rng.normal(0.5, 1, n), rng.normal(3, 1, n)),
            np.where(hard, 0.3, 0.8) + rng.normal(0, 0.1, n),
            rng.uniform(0.5, 1, n),
            rng.normal(size=n),
        ],
        axis=1,
    )
    return values, species, ~hard, rng.random(n) < server


def test_signals_of_hand_made_answers():
    p = np.array([[0.5, 0.1, 0.1, 0.2, 0.06, 0.04], [0.1, 0.1, 0.1, 0.6, 0.1, 0.0]])
    values, species = signals(p, np.array([0.7, 0.3]), TREE)
    assert species.tolist() == [0, 1]
    assert values == pytest.approx(
        np.array([[0.0, 0.7 - 0.2, 0.4 / 0.7, 0.7], [np.log(0.6 / 0.4), 0.6 - 0.3, 1.0, 0.3]]),
        abs=1e-9,
    )


def test_signals_need_only_the_sums_of_other_species():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(6, 0.3), 200)
    whole = signals(p, np.zeros(200), TREE)
    spread = p.copy()
    for row, s in enumerate(whole[1]):
        for other in {0, 1, 2} - {int(s)}:
            part = slice(TREE.offsets[other], TREE.offsets[other + 1])
            spread[row, part] = p[row, part].mean()
    again = signals(spread, np.zeros(200), TREE)
    assert np.allclose(whole[0], again[0])
    assert np.array_equal(whole[1], again[1])


def test_a_sure_answer_has_finite_signals():
    values, _ = signals(np.eye(6)[:1], np.zeros(1), TREE)
    assert np.isfinite(values).all()


def test_the_fit_is_at_the_mode_of_its_posterior():
    values, species, browser, server = world(400, 0)
    gain = server & ~browser
    rule = fit(values, species, gain, 3)
    scaled = (values - rule.mean) / np.array(rule.spread)
    error = rule.score(values, species) - gain
    # the slope of the log-likelihood is what the prior pulls back
    assert np.allclose(scaled.T @ error, -np.array(rule.weights) * deferral.SPREAD**-2, atol=2e-3)
    own = np.array([error[species == s].sum() for s in range(3)])
    assert np.allclose(own, -np.array(rule.species) * deferral.SPECIES_SPREAD**-2, atol=2e-3)
    assert rule.weights[0] < 0
    assert rule.species[2] > max(
        rule.species[:2]
    )  # less sure, or of the species that fools it: rather sent


def test_species_never_seen_have_no_term_and_rare_ones_a_small_one():
    values, species, browser, server = world(300, 1)
    species[:] = 0
    species[:2] = 1
    gain = np.zeros(300, bool)
    gain[:2] = True
    rule = fit(values, species, gain, 3)
    assert rule.species[2] == 0
    assert 0 < rule.species[1] < 1.5


def test_nothing_to_gain_sends_nothing():
    values, species, browser, _ = world(200, 2)
    rule = fit_deferral(values, species, browser, browser, 3)
    assert rule.threshold is None
    assert not rule.sends(values, species).any()
    assert rule.score(values, species).max() < 0.01
    judged = judge_deferral(rule, values, species, browser, browser)
    assert judged["saved"] is None
    assert judged["sent"] == 0
    assert "no photo needs to be sent" in "\n".join(report_lines(judged, judged, rule))


@pytest.mark.parametrize("n", [1, 9, 12])
def test_few_photos_are_no_error(n):
    values, species, browser, server = world(n, 3)
    assert np.isfinite(
        fit_deferral(values, species, browser, server, 3).score(values, species)
    ).all()


def test_the_threshold_keeps_half_a_point_on_photos_not_fitted():
    values, species, browser, server = world(3000, 4)
    rule = fit_deferral(values, species, browser, server, 3)
    judged = judge_deferral(rule, *world(20000, 5))
    assert judged["hybrid"] > judged["server"] - 0.015
    assert judged["browser"] < judged["server"] - 0.1
    assert 0.05 < judged["sent"] < 0.6
    half = next(row for row in judged["by_share"] if row["share"] == 0.2)
    assert half["best"] >= half["rule"] > half["confidence"] - 0.002
    assert half["rule"] > judged["browser"] + 0.05


def test_the_share_is_chosen_by_photos_the_rule_has_not_seen(monkeypatch):
    values, species, browser, server = world(200, 6)
    fitted = []
    monkeypatch.setattr(
        deferral, "fit", lambda v, s, g, n: fitted.append(len(v)) or fit(v, s, g, n)
    )
    fit_deferral(values, species, browser, server, 3)
    assert sorted(fitted) == [160] * 5 + [200]


def test_the_ends_of_the_hybrid_are_browser_and_server():
    _, _, browser, server = world(50, 7)
    curve = hybrid_accuracy(np.random.default_rng(0).permutation(50), browser, server)
    assert len(curve) == 51
    assert curve[0] == browser.mean()
    assert curve[-1] == pytest.approx(server.mean())


def test_a_rule_travels_as_json_without_changing():
    values, species, browser, server = world(500, 8)
    rule = fit_deferral(values, species, browser, server, 3)
    assert rule.threshold is not None
    again = from_json(json.loads(json.dumps(rule.to_json())))
    assert again == rule
    assert np.array_equal(again.sends(values, species), rule.sends(values, species))


def test_another_rule_is_refused():
    good = Rule(0.0, (0.0,) * 4, (0.0,) * 4, (1.0,) * 4, (0.0,)).to_json()
    with pytest.raises(ValueError, match="goes by"):
        from_json(good | {"signals": ["confidence"]})
    with pytest.raises(ValueError, match="one weight"):
        from_json(good | {"weights": [1.0]})
