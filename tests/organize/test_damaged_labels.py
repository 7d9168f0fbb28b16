"""Label files damaged at random: a picture never gets a label that no row gives it."""

from dataclasses import replace

import damaged_tables as damaged
import pytest

from common.labels import read_label_file


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


def test_the_check_finds_a_reader_that_takes_the_row_below(source, monkeypatch):
    def shifted(*args):
        read = read_label_file(*args)
        return replace(read, labels=read.labels[1:] + read.labels[:1])

    monkeypatch.setattr("common.organize.label_csv.read_label_file", shifted)
    assert sum(damaged.trial(*source, seed)[2] for seed in range(30)) > 20
