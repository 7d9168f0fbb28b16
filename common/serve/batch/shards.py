"""A long run on many processes or machines: each answers a share of the photos into a file of its
own, and one puts the files together.

Shard K of N, from 0 to N-1, has the photos whose names have a hash that is K modulo N: a photo's
shard depends neither on the machine nor on the other photos. Its file is a part file (see
predictions.py), finished when it has a line for each of its photos.
"""

import contextlib
import re
from dataclasses import replace
from pathlib import Path

from common.console import fail, say
from common.serve.batch.ensembles import Ensemble
from common.serve.batch.predictions import (
    Job,
    Part,
    fill,
    hash_of,
    parse_line,
    part_of,
    predict,
    resume,
    tie,
)

MOST = 1000  # shards; all their files are open while they are merged


def answer_shard(ensemble: Ensemble, job: Job, shard: int, count: int) -> None:
    """Answer a shard's photos into its file, going on where a run of it was stopped; errors as of
    `predictions.fill`.
    """
    mine = split(job, count)[0][shard]
    mine.output.parent.mkdir(parents=True, exist_ok=True)
    with mine.output.open("a+b") as file:
        _, told = fill(ensemble, mine, file)
    say(
        f"photos   {told}",
        f"wrote    {mine.output}",
        f"next     once all {count} shards have run: the same command with --merge instead of "
        f"--shard {shard}/{count}",
    )


def split(job: Job, count: int) -> tuple[list[Job], list[int]]:
    """The job of each shard, its output the shard's file; and the shard of each photo."""
    shards = [int(hash_of([name]), 16) % count for name in job.names]
    members: list[list[int]] = [[] for _ in range(count)]
    for photo, shard in enumerate(shards):
        members[shard].append(photo)
    jobs = [
        replace(
            job,
            photos=tuple(job.photos[i] for i in mine),
            names=tuple(job.names[i] for i in mine),
            output=job.output.with_name(f"{job.output.name}.shard-{shard}-of-{count}"),
        )
        for shard, mine in enumerate(members)
    ]
    return jobs, shards


def merge(ensemble: Ensemble, job: Job) -> int:
    """Make a job's output from the files of its shards, as `predictions.predict` makes it without
    shards, byte for byte; then delete the files.

    Returns:
        as `predict`.

    Raises:
        SystemExit: where shards are missing, unfinished, being written, or of other models, flags,
            photos or providers; else as `predict`.
    """
    jobs, shards = split(job, _count(job.output))
    with contextlib.ExitStack() as opened:
        parts = _open(ensemble, jobs, opened)
        file = opened.enter_context(part_of(job).open("a+b"))
        file.truncate(resume(file, tie(ensemble, job), job.photos).start)
        for part in parts:
            part.file.seek(part.start)
        for shard in shards:
            file.write(parts[shard].file.readline())
    failures = predict(ensemble, job)  # finds all photos done
    for mine in jobs:
        mine.output.unlink()
    return failures


def _count(output: Path) -> int:
    """How many shards an output has, by the files beside it."""
    pattern = re.compile(re.escape(output.name) + r"\.shard-\d+-of-(\d+)")
    matches = (pattern.fullmatch(path.name) for path in output.parent.glob("*.shard-*-of-*"))
    found = sorted({int(match[1]) for match in matches if match})
    if not found:
        fail(
            f"there are no shards of {output} beside it. First run the same command with --shard "
            f"0/16, 1/16 and so on to 15/16 instead of --merge."
        )
    if len(found) > 1:
        fail(
            f"{output} has shards of {' and of '.join(map(str, found))} beside it. Delete those "
            f"that are not to be merged."
        )
    return found[0]


def _open(ensemble: Ensemble, jobs: list[Job], opened: contextlib.ExitStack) -> list[Part]:
    """Open the finished files of shards; SystemExit where that is not possible with all."""
    with contextlib.suppress(ImportError, ValueError):  # Windows; more than the system allows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MOST + 100), hard))
    parts: list[Part] = []
    wrong: dict[str, list[str]] = {}
    providers: dict[str, str] = {}  # all the same, but not those of this machine
    for shard, job in enumerate(jobs):
        why = "missing"
        if job.output.exists():
            file = opened.enter_context(job.output.open("r+b"))
            head = parse_line(file.readline())
            providers = providers or {key: head[key] for key in ("providers",) if key in head}
            part = Part(file, tie(ensemble, job) | providers, job.photos)
            parts.append(part)
            unfinished = part.done < len(job.photos)
            why = (
                f"of other {' and '.join(part.other)}" if part.other else "unfinished" * unfinished
            )
        if why:
            wrong.setdefault(why, []).append(str(shard))
    if wrong:
        told = "; ".join(f"{why}: {','.join(found)}" for why, found in wrong.items())
        fail(
            f"the {len(jobs)} shards cannot be merged yet. {told[0].upper()}{told[1:]}. Run these "
            f"with --shard, which says what to do about the file of another run."
        )
    return parts
