"""Processes that begin where torch and timm are imported already, which takes each other one about
five seconds: they are forked from one that has done nothing else.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = ["torch", "timm", "common.train.run", "02a_train_species"]


def preload() -> None:
    """Tell the system's fork server, of which pytest's process has one, what to import."""
    multiprocessing.set_forkserver_preload(IMPORTED)


def _begin(log: Path, target: Callable[..., object], args: tuple[object, ...]) -> None:
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(printed, descriptor)
    target(*args)


def start(log: Path, target: Callable[..., object], *args: object) -> BaseProcess:
    """Start a process that calls a function of a module, and prints into a file."""
    preload()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_begin, args=(log, target, args))
    process.start()
    return process
