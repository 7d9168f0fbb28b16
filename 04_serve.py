"""Stage 4: answer photos with an exported model, over HTTP with a web page, or for whole folders.

Reads   exports/ (written by 03_export.py). Needs no torch.
Writes  nothing; with --predict a CSV, one row per photo, with --submission a second one.

  python 04_serve.py                                   the page and the API at http://127.0.0.1:8000
  python 04_serve.py --port 9000 --model model.onnx    another port, another model of the exports
  python 04_serve.py --workers 4 --provider cpu        several processes on one port, on the CPU
  python 04_serve.py --predict photos/ leaf.jpg --output predictions.csv
  python 04_serve.py --predict photos/ --shard 3/16    on many machines: common/serve/CLUSTERS.md

  curl --data-binary @leaf.jpg http://127.0.0.1:8000/predict
  curl -F photo=@a.jpg -F photo=@b.jpg http://127.0.0.1:8000/predict      two photos of one plant

It starts in about a second and adds a few milliseconds to the model's own time. An answer names
species and disease, or the species alone, or is a rejection that says why. Only this computer can
reach the server unless --host says otherwise; it keeps no photo. /docs describes the API. Ctrl-C or
SIGTERM answers the requests under way, then stops it. Deploying: common/serve/README.md.
"""

import argparse
import socket
from collections.abc import Sequence
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

from common import console
from common.files import cores
from common.serve.advice import describe_advice, read_advice
from common.serve.batch import latency
from common.serve.batch.ensembles import Ensemble, locate, open_models
from common.serve.batch.photo_list import (
    find_photos,
    labels_from_csv,
    labels_from_folders,
    names_below,
)
from common.serve.batch.predictions import Job, predict
from common.serve.batch.shards import answer_shard, merge
from common.serve.batch.submission import plan_submission
from common.serve.flags import add_batch_flags, add_flags, add_server_flags, check_flags
from common.serve.http import sockets, workers
from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.http.web_files import describe_light
from common.serve.http.work_queue import settle_process
from common.serve.predictor import Bundle, BundleError, ModelCard, Predictor, read_bundle
from common.serve.providers import GPUS, installed, open_predictor
from common.serve.shared import RemoteModel, SharedModel


@console.friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or predict files; returns the exit code."""
    parser = console.parser(__doc__)
    add_flags(parser)
    add_server_flags(parser)
    add_batch_flags(parser)
    args = parser.parse_args(argv)
    check_flags(args)
    if args.predict:
        return predict_files(find_photos(args.predict), args)
    args.exports, args.model = locate(args.exports, args.model[0] if args.model else None)
    listener = sockets.bind(args.host, args.port)
    model, provider = None, ""
    if args.provider != "cpu" and set(GPUS) & set(installed()):
        model, provider = open_predictor(args.exports, args.model, args.provider)
        args.model, args.provider = model.card.file, provider
    # one process has the GPU; several speak HTTP, or Python would be slower than it
    on_gpu = provider in GPUS
    args.workers = args.workers or (max(1, min(8, cores() // 2)) if on_gpu else 1)
    if args.workers == 1:
        return serve(args, listener, model)
    bundle = read_bundle(args.exports)
    if args.model and args.model not in bundle.models:
        console.fail(
            f"{args.exports} has no model '{args.model}'. It has: {', '.join(bundle.models)}"
        )
    read_advice(args.exports, bundle.tree)  # fails here rather than in every process
    shared = (SharedModel(model.submit).address, model.bundle.raw) if on_gpu else None
    return workers.supervise(
        args.workers,
        work,
        (args, listener, shared),
        started=lambda: announce(args, listener, bundle, model and model.card, provider),
    )


def work(args: argparse.Namespace, listener: socket.socket, shared: Any, ready: Semaphore) -> int:
    """Serve as one of several processes, unless `shared` is None by the model at its address, of
    its bundle.json; `ready` is released once it serves.
    """
    try:
        model = Predictor(args.exports, args.model) if shared else None
        if model:
            address, known = shared
            if model.bundle.raw != known:  # the other process has the old model
                raise BundleError(f"{args.exports} has changed; restart the server")
            model.submit = RemoteModel(address).submit
        return serve(args, listener, model, ready)
    except BundleError as error:
        console.fail(str(error))


def serve(
    args: argparse.Namespace,
    listener: socket.socket,
    model: Predictor | None = None,
    ready: Semaphore | None = None,
) -> int:
    """Answer requests until Ctrl-C or SIGTERM; those under way are finished first. Raises
    BundleError where there is no `model` and none can be opened.
    """
    settle_process()
    provider = args.provider
    predictor = model
    if predictor is None:
        predictor, provider = open_predictor(args.exports, args.model, args.provider)
    threads = args.threads or max(1, cores() // args.workers)
    settings = Settings(
        top_k=args.top_k,
        mode=args.mode,
        runners=threads,
        waiting=args.queue or (128 if provider in GPUS else 32) * threads,
        max_upload_mb=args.max_upload_mb,
        memory_mb=max(3 * args.max_upload_mb, min(512, 64 * threads)),
        access_log=args.access_log,
        provider=provider,
        api_key=args.api_key,
        cors_origins=tuple(args.cors_origin),
        texts=args.texts,
    )
    app = make_app(predictor, settings)
    sockets.serve(
        app,
        listener,
        worker=ready is not None,
        proxies=args.forwarded_allow_ips,
        started=ready.release
        if ready
        else lambda: announce(args, listener, predictor.bundle, predictor.card, provider),
    )
    if ready is None:
        console.say("stopped")
    return 0


def announce(
    args: argparse.Namespace,
    listener: socket.socket,
    bundle: Bundle,
    card: ModelCard | None = None,
    provider: str = "",
) -> None:
    """Say which model answers, and where."""
    describe(bundle, card or bundle.models[args.model or bundle.default_model], provider)
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    if host in ("0.0.0.0", "::"):
        console.say(
            "network  everyone who can reach this computer can send photos"
            + (", with the API key" if args.api_key else "")
        )
    console.say(
        f"page     {url}/ {describe_light(args.exports)}",
        f"advice   {describe_advice(args.exports, bundle.tree, args.texts['language'])}",
        f"API      {url}/docs",
        f"try      curl --data-binary @leaf.jpg {url}/predict",
        "stop     Ctrl-C",
    )


def describe(bundle: Bundle, card: ModelCard, provider: str = "") -> None:
    """Say which model answers, and above which OOD score it rejects."""
    console.header(f"{bundle.name} {bundle.version}")
    console.say(
        f"model    {card.file} ({card.precision}, {card.size_mb:.1f} MB, {bundle.backbone}, "
        f"{bundle.size} x {bundle.size} pixels{f', on {provider}' if provider else ''})",
        f"classes  {bundle.tree.num_classes} of {bundle.tree.num_species} species",
    )
    console.say(
        "rejects  "
        + (
            f"{card.rejection.ood.score} above {card.rejection.ood.threshold:.4g}"
            if card.rejection
            else "nothing: this export has no rejection threshold"
        )
    )


def predict_files(photos: Sequence[Path], args: argparse.Namespace) -> int:
    """Answer photos into a CSV, or time it; returns the exit code: 1 where a photo could not be
    read.
    """
    settle_process()
    models = open_models(args.exports, args.model, args.provider)
    ensemble = Ensemble([predictor for predictor, _ in models], args.tta)
    threads = args.threads or cores()
    for predictor, provider in models:
        describe(predictor.bundle, predictor.card, provider)
    if args.benchmark:
        console.say(*latency.measure(ensemble, photos, threads, args.mode))
        return 0
    if args.labels:
        labels = labels_from_csv(args.labels, photos, ensemble.tree, parse_names)
    else:
        labels = labels_from_folders(photos, ensemble.tree, parse_names)
    plan = (
        plan_submission(args.submission, photos, ensemble.tree, args.sample_submission)
        if args.submission
        else None
    )
    names = tuple(names_below(photos, args.predict))
    job = Job(tuple(photos), args.output, labels, args.mode, threads, plan, names)
    if args.shard:  # its failures are told when all are merged
        answer_shard(ensemble, job, *args.shard)
        return 0
    return int((merge if args.merge else predict)(ensemble, job) > 0)


def parse_names(names: list[str]) -> list[tuple[str, str] | None]:
    """Species and disease of class names, as stage 1 reads them; None where it would ask."""
    # here, since a server does not need the name parser
    from common.organize.names.parse import ASK_BELOW, parse_class_names

    return [
        (found.species, found.disease)
        if found.species and found.disease and found.confidence >= ASK_BELOW
        else None
        for found in parse_class_names(names)
    ]


if __name__ == "__main__":
    raise SystemExit(main())
