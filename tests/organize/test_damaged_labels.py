"""Label files damaged at random: a picture never gets a label that no row gives it."""

import damaged_tables as damaged
import pytest


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    return damaged.make_source(folder), folder


@pytest.mark.parametrize("block", range(4))
def test_no_picture_gets_a_label_that_no_row_gives_it(source, block):
    trials = [damaged.trial(*source, seed) for seed in range(100 * block, 100 * (block + 1))]
    assert [i for i, (_, _, wrong) in enumerate(trials) if wrong] == []
    outcomes = [outcome for outcome, _, _ in trials]
    assert min(outcomes.count("read"), outcomes.count("stopped")) > 15
    assert sum(labelled for _, labelled, _ in trials) > 500


def test_the_check_finds_a_reader_that_guesses(source, monkeypatch):
    def by_name(written, paths, bases):
        names = {path.rpartition("/")[2]: i for i, path in enumerate(paths)}
        return [names.get(text.replace("\\", "/").rpartition("/")[2], -1) for text in written]

    monkeypatch.setattr("common.organize.label_csv.match_paths", by_name)
    assert sum(damaged.trial(*source, seed)[2] for seed in range(100)) > 20
