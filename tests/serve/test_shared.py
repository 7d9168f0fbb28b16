"""One model for several processes: whose numbers are whose, and what fails. A whole server of them
is in test_serve.py.
"""

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import current_process, util
from multiprocessing.connection import Listener

import numpy as np
import pytest

from common.serve.predictor import Outputs
from common.serve.shared import ModelGone, RemoteModel, SharedModel

# what ends a thread here is told of on the terminal
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def submit(pictures):
    """Give back each picture's first value; one that begins with 255 fails."""
    done = Future()
    first = pictures[:, 0, 0, :1].astype(np.float32)
    if first[0] == 255:
        done.set_exception(RuntimeError("the device fell over"))
    else:
        done.set_result(Outputs(first, first + 1, first[:, :, None]))
    return done


def picture(*values):
    return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])


def test_everyone_gets_their_own_numbers():
    shared = SharedModel(submit)
    remotes = [RemoteModel(shared.address) for _ in range(3)]

    def ask(value):
        return remotes[value % 3].submit(picture(value, value + 1)).result(10)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(60)))
    assert [outputs.ood[:, 0].tolist() for outputs in found] == [[i + 1, i + 2] for i in range(60)]
    assert found[0].heatmap.shape == (2, 1, 1)


def test_what_fails_fails_alone():
    remote = RemoteModel(SharedModel(submit).address)
    bad, good = remote.submit(picture(255)), remote.submit(picture(1))
    with pytest.raises(RuntimeError, match="fell over"):
        bad.result(10)
    assert good.result(10).probabilities[0, 0] == 1


def test_an_answer_that_nobody_waits_for_is_dropped():
    held, asked = Future(), threading.Semaphore(0)

    def late(pictures):
        asked.release()
        return held if pictures[0, 0, 0, 0] == 7 else submit(pictures)

    remote = RemoteModel(SharedModel(late).address)
    gone = remote.submit(picture(7))
    assert asked.acquire(timeout=10)
    assert gone.cancel()
    held.set_result(submit(picture(7)).result())
    assert remote.submit(picture(2)).result(10).probabilities[0, 0] == 2


@pytest.fixture
def bare():
    """A model that answers nothing by itself: its side of the connection, and the remote one."""
    with (
        Listener(authkey=bytes(current_process().authkey)) as listener,
        ThreadPoolExecutor(1) as pool,
    ):
        accepted = pool.submit(listener.accept)
        remote = RemoteModel(listener.address)
        with accepted.result(10) as connection:
            yield connection, remote


def test_the_end_of_the_models_process_is_told_to_all_who_wait_and_who_come(bare):
    connection, remote = bare
    waiting, late = [remote.submit(picture(value)) for value in (1, 2)], []

    def come(_):
        try:
            remote.submit(picture(3))
        except ModelGone:
            late.append("told")

    waiting[0].add_done_callback(come)  # while the others are being told
    connection.close()
    for one in waiting:
        with pytest.raises(ModelGone, match="has ended"):
            one.result(10)
    assert late == ["told"]


def test_an_answer_that_cannot_be_read_ends_the_connection_on_both_sides(bare):
    connection, remote = bare
    waiting = remote.submit(picture(1))
    connection.send_bytes(b"no pickle")
    with pytest.raises(ModelGone):
        waiting.result(10)
    assert connection.recv()[0] == 0, "the picture"
    with pytest.raises((EOFError, ConnectionResetError)):
        connection.recv()


def fails(pictures):
    raise ValueError("too many pictures")


def cannot_be_sent(pictures):
    done = Future()
    done.set_result(threading.Lock())
    return done


@pytest.mark.parametrize("wrong", [fails, cannot_be_sent])
def test_a_model_that_fails_the_connection_closes_it(wrong):
    remote = RemoteModel(SharedModel(wrong).address)
    with pytest.raises(ModelGone):
        remote.submit(picture(1)).result(10)


@pytest.mark.skipif(sys.platform == "win32", reason="no socket there has a path")
def test_a_temporary_folder_with_a_long_path_will_do(monkeypatch):
    monkeypatch.setattr(util, "get_temp_dir", lambda: "/tmp/" + 100 * "t")
    shared = SharedModel(submit)
    assert shared.address[0] == "127.0.0.1"
    assert RemoteModel(shared.address).submit(picture(1)).result(10).probabilities[0, 0] == 1
