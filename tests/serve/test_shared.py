"""One model for several processes: whose numbers are whose, and what fails. A whole server of them
is in test_serve.py.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import current_process
from multiprocessing.connection import Listener

import numpy as np
import pytest

from common.serve.predictor import BundleError, Outputs
from common.serve.shared import RemoteModel, SharedModel


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


def test_the_end_of_the_models_process_is_told():
    listener = Listener(authkey=bytes(current_process().authkey))
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listener.accept)
        remote = RemoteModel(listener.address)
        waiting = remote.submit(picture(1))
        accepted.result(10).close()
    with pytest.raises(BundleError, match="has ended"):
        waiting.result(10)
    listener.close()
