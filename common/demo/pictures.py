"""The demo's pictures, for people without photos: 30 classes of drawn leaves and some non-plants.
No torch.
"""

import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from common.console import progress
from common.demo.leaves import compose, paint_leaf
from common.demo.lesions import infect
from common.demo.scenes import Style, photograph
from common.demo.things import draw_thing
from common.files import cores, stand_in

FORMAT = 3  # raise it when the same seed draws other pictures
MARKER = "demo.json"
NOT_PLANTS = 240
NOT_PLANT_CLASS = 1000  # class number that the pictures of no plant are drawn under

# Folder name as messy as people's own, species, disease, pictures. A long tail on purpose.
CLASSES: list[tuple[str, str, str, int]] = [
    ("Tomato___healthy", "tomato", "healthy", 160),
    ("Tomato___Early_blight", "tomato", "early blight", 130),
    ("tomato leaf late blight", "tomato", "late blight", 110),
    ("Tomato_Bacterial Spot Bacteria serious", "tomato", "bacterial spot", 90),
    ("tomato_mosaic_virus", "tomato", "mosaic virus", 44),
    ("Lemon_Healthy", "lemon", "healthy", 130),
    ("Lemon_Canker", "lemon", "canker", 90),
    ("lemon greening disease", "lemon", "greening", 76),
    ("Lemon-LeafMiner", "lemon", "leaf miner", 40),
    ("Apple leaf", "apple", "healthy", 150),
    ("Apple Scab Leaf", "apple", "scab", 110),
    ("Apple___Cedar_apple_rust", "apple", "cedar apple rust", 80),
    ("apple__powdery_mildew", "apple", "powdery mildew", 46),
    ("Healthy Grape Leaf", "grape", "healthy", 140),
    ("grape leaf black rot", "grape", "black rot", 110),
    ("Grape_Downy_Mildew", "grape", "downy mildew", 70),
    ("Grape___Esca_(Black_Measles)", "grape", "esca", 60),
    ("Corn_(maize)___healthy", "corn", "healthy", 150),
    ("Corn_(maize)___Common_rust_", "corn", "common rust", 110),
    ("corn northern leaf blight", "corn", "northern leaf blight", 95),
    ("Maize Gray Leaf Spot", "corn", "gray leaf spot", 56),
    ("Strawberry__healthy", "strawberry", "healthy", 120),
    ("Strawberry___Leaf_scorch", "strawberry", "leaf scorch", 100),
    ("STRAWBERRY LEAF SPOT", "strawberry", "leaf spot", 64),
    ("Oak__healthy", "oak", "healthy", 100),
    ("Powdery_mildew_on_oak", "oak", "powdery mildew", 72),
    ("oak anthracnose general", "oak", "anthracnose", 36),
    ("SweetPotato-Healthy", "sweet potato", "healthy", 110),
    ("SweetPotato-LeafSpot", "sweet potato", "leaf spot", 54),
    ("Sweet potato mosaic virus", "sweet potato", "mosaic virus", 32),
]
TEXT_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"5e" * 32 + b"\nsize 48213\n"
)
HTML_PAGE = (
    b"<!DOCTYPE html><html><head><title>404 Not Found</title></head>"
    b"<body><h1>Not Found</h1></body></html>\n"
)
NAME_STYLES = ("IMG_{:04d}.jpg", "leaf ({}).JPG", "{:05d}.jpg", "DSC{:05d}.jpeg", "photo-{}.jpg")


def class_sizes(scale: float = 1.0) -> dict[str, int]:
    """Pictures drawn per class folder at `scale`, at least 3; planted files come on top."""
    return {folder: max(3, round(size * scale)) for folder, _, _, size in CLASSES}


def streams(seed: int, class_number: int, picture_number: int) -> list[np.random.Generator]:
    """Three independent generators for one picture: its subject, its style and ground, its camera's
    noise.
    """
    first = np.random.default_rng([seed, class_number, picture_number])
    return [np.random.default_rng(first.integers(0, 2**63, 4)) for _ in range(3)]


def draw_picture(seed: int, class_number: int, picture_number: int) -> bytes:
    """One demo picture as the bytes of a JPEG; the same arguments give the same bytes.

    class_number indexes CLASSES; NOT_PLANT_CLASS draws a picture of no plant.
    """
    subject, scene, camera = streams(seed, class_number, picture_number)
    style = Style(scene)
    if class_number == NOT_PLANT_CLASS:
        image = draw_thing(picture_number, subject, style.height, style.width)
    else:
        _, species, disease, _ = CLASSES[class_number]
        image = compose(infect(paint_leaf(species, subject), disease, subject), style, scene)
    return photograph(image, style, camera)


def _draw_file(job: tuple[int, int, int, Path]) -> None:
    *numbers, path = job
    path.write_bytes(draw_picture(*numbers))


def _jobs(root: Path, seed: int, scale: float) -> Iterator[tuple[int, int, int, Path]]:
    for number, (folder, count) in enumerate(class_sizes(scale).items()):
        (root / "plants" / folder).mkdir(parents=True)
        for k in range(count):
            name = NAME_STYLES[number % len(NAME_STYLES)].format(k + 1)
            yield seed, number, k, root / "plants" / folder / name
    (root / "not_plants").mkdir()
    for k in range(max(3, round(NOT_PLANTS * scale))):
        yield seed, NOT_PLANT_CLASS, k, root / "not_plants" / f"other_{k + 1:04d}.jpg"


def _shrunk(path: Path) -> bytes:
    with Image.open(path) as image, io.BytesIO() as buffer:
        upright = ImageOps.exif_transpose(image)
        ImageOps.scale(upright, 0.85, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=72)
        return buffer.getvalue()


def _plant_defects(root: Path, seed: int) -> dict[str, list]:
    """Adds what goes wrong in real collections -> kind -> paths below the root; pairs are
    [original, copy].
    """
    rng = np.random.default_rng([seed, NOT_PLANT_CLASS + 1])
    order = rng.permutation(len(CLASSES)).tolist()
    planted: dict[str, list] = {}

    def files(number: int) -> list[Path]:
        return sorted((root / "plants" / CLASSES[number][0]).iterdir())

    def add(kind: str, number: int, name: str, data: bytes, original: Path | None = None) -> None:
        path = root / "plants" / CLASSES[number][0] / name
        path.write_bytes(data)
        pair = [str(p.relative_to(root)) for p in (original, path) if p]
        planted.setdefault(kind, []).append(pair if original else pair[0])

    for k in range(2):
        data = files(order[k])[1].read_bytes()
        part = data[: int(len(data) * rng.uniform(0.3, 0.7))]
        add("truncated", order[k], f"broken_download_{k}.jpg", part)
        add("zero_bytes", order[2 + k], f"IMG_90{k}.jpg", b"")
    add("text_pointers", order[4], "leaf_900.JPG", TEXT_POINTER)
    add("html_pages", order[5], "download.jpg", HTML_PAGE)
    with Image.open(files(order[6])[0]) as image, io.BytesIO() as thumbnail:
        image.resize((12, 9)).save(thumbnail, "JPEG", quality=80)
        add("thumbnails", order[6], "thumb.jpg", thumbnail.getvalue())
    for k in range(6):
        source = files(order[7 + k])[int(rng.integers(3))]
        add("duplicates", order[7 + k], f"{source.stem} - Copy.jpg", source.read_bytes(), source)
    for k in range(4):
        source = files(order[13 + k])[int(rng.integers(3))]
        add("near_duplicates", order[13 + k], f"{source.stem}_small.jpg", _shrunk(source), source)
    one = next(n for n in order[17:] if CLASSES[n][2] != "healthy")
    other = next(n for n, c in enumerate(CLASSES) if c[1] == CLASSES[one][1] and n != one)
    source = files(one)[2]
    add("label_conflicts", other, "from_the_other_folder.jpg", source.read_bytes(), source)
    return planted


def make_demo(
    folder: Path, *, seed: int = 0, workers: int | None = None, scale: float = 1.0
) -> dict:
    """Draws the demo's pictures below `folder`, unless they are complete there already.

    Makes plants/<class folder>/*.jpg, not_plants/*.jpg and a marker file, demo.json, all at once at
    the end (they grow in a hidden folder beside it). Class sizes are multiplied by `scale`. The
    bytes depend on `seed` and `scale` alone.

    Returns what the marker holds ("images": files below plants, "classes": class folders,
    "not_plant_images": files below not_plants, "planted": {kind: paths or [original, copy] pairs
    below `folder`}, format, seed and scale) and the folders "plants" and "not_plants". Raises
    FileExistsError when `folder` holds something that this function did not make.
    """
    wanted = {"format": FORMAT, "seed": seed, "scale": scale}
    places = {name: folder / name for name in ("plants", "not_plants")}
    try:
        marker = dict(json.loads((folder / MARKER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        marker = {}  # none, or not ours
    if wanted.items() <= marker.items():
        return marker | places
    if not marker and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} holds something other than demo pictures; give another folder or move it "
            f"away"
        )
    growing = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    jobs = list(_jobs(growing, seed, scale))
    workers = workers or cores()
    # one thread each, since the processes already fill the cores; they start with the first job
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        done = pool.map(_draw_file, jobs, chunksize=16) if workers > 1 else map(_draw_file, jobs)
        list(progress(done, total=len(jobs), desc="drawing", unit="picture"))
    planted = _plant_defects(growing, seed)
    marker = {
        **wanted,
        "classes": len(CLASSES),
        "images": len([*growing.glob("plants/*/*")]),
        "not_plant_images": len([*growing.glob("not_plants/*")]),
        "planted": planted,
    }
    (growing / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    stand_in(growing, folder)
    return marker | places
