"""bundle.json written and read, and Predictor against the contract of the exported models."""

import io
import json

import numpy as np
import onnx
import pytest
import tiny_bundle as tiny
from onnx import TensorProto
from PIL import Image

from common.files import file_sha256
from common.images import ImageError, encode_jpeg, read_rgb, resize_to_model
from common.serve.predictor import BundleError, Predictor, open_session, read_bundle, write_bundle

pytestmark = pytest.mark.smoke


@pytest.fixture
def folder(tmp_path):
    return tiny.make(tmp_path / "exports")


def edit(folder, change):
    """Change bundle.json behind the program's back."""
    data = json.loads((folder / "bundle.json").read_text())
    change(data)
    (folder / "bundle.json").write_text(json.dumps(data))


def test_what_is_written_is_read_again(folder):
    bundle = read_bundle(folder)
    assert bundle.tree == tiny.TREE
    assert bundle.size == tiny.SIZE
    assert bundle.long_side == 64
    assert bundle.scores == ("msp", "mahalanobis")
    assert bundle.default_model == "model.int8.onnx"
    card = bundle.models["model.onnx"]
    assert card.sha256 == file_sha256(folder / "model.onnx")
    assert card.temperature == {
        "species": 1.0,
        "disease": [1.0, 1.0, 1.0],
    }
    assert (
        card.rejection.ood.weights,
        card.rejection.ood.threshold,
        card.rejection.photo["short_side"],
    ) == ((0.0, 1.0), 0.05, 40)
    assert (card.rollup.disease, card.rollup.precision, card.rollups["0.90"].disease) == (
        0.7,
        0.95,
        0.6,
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "bundle.json",
        "model.int8.onnx",
        "model.onnx",
    ]


def test_a_rejected_bundle_leaves_the_old_one_and_no_rest(folder, monkeypatch):
    before = (folder / "bundle.json").read_bytes()
    plain = tiny.describe(folder)
    wrong_hash = {name: {**card, "sha256": "0" * 64} for name, card in plain["models"].items()}
    for changed in (
        {**plain, "metrics": {"a": float("nan")}},
        {**plain, "models": wrong_hash},
        {**plain, "format": 1},
        {**plain, "default_model": "other.onnx"},
        {key: plain[key] for key in plain if key != "tree"},
    ):
        with pytest.raises(BundleError):
            write_bundle(folder, changed)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_bundle(folder, plain)
    assert (folder / "bundle.json").read_bytes() == before
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format=7), "format 7"),
        (lambda d: d.update(format=3), "export again with python 03_export.py"),
        (lambda d: d.pop("scores"), "lacks the key 'scores'"),
        (lambda d: d["models"]["model.onnx"].pop("rollup"), "lacks the key 'rollup'"),
        (
            lambda d: d["models"]["model.onnx"]["rejection"].update(weights={"knn": 1}),
            "rejects by 'knn'",
        ),
        (
            lambda d: d["models"]["model.onnx"]["rollup"].update(default="0.5"),
            "precision '0.5' is not among 0.90, 0.95",
        ),
        (
            lambda d: d["models"]["model.onnx"]["temperature"].update(disease=[1.0, 1.0]),
            "one per species",
        ),
        (
            lambda d: d["models"]["model.onnx"]["temperature"].update(disease=1.0),
            "not as it should be|not iterable",
        ),
        (lambda d: d["preprocessing"].update(resize="opencv-linear"), "opencv-linear"),
        (lambda d: d["preprocessing"].update(size="big"), "no picture size"),
        (lambda d: d["tree"].update(species=[]), "at least one species"),
        (lambda d: d.update(models=[]), "not as it should be"),
        (lambda d: d["models"].update({"../x.onnx": d["models"]["model.onnx"]}), "plain name"),
        (
            lambda d: d["models"]["model.int8.onnx"].update(sha256="ab" * 32),
            "not the file that was exported",
        ),
    ],
)
def test_a_wrong_bundle_is_told_in_a_sentence(folder, change, words):
    edit(folder, change)
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle(folder)
    assert "03_export.py" in str(caught.value)


def test_missing_and_damaged_files_are_told(folder, tmp_path):
    with pytest.raises(BundleError, match="no exports folder"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="holds no bundle.json"):
        read_bundle(tmp_path)
    (folder / "model.int8.onnx").unlink()
    with pytest.raises(BundleError, match="is missing"):
        read_bundle(folder)
    (folder / "bundle.json").write_text('{"format": 1, ')
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(folder)
    (folder / "bundle.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(folder)


def test_predictor_runs_batches_as_single_pictures(folder):
    predictor = Predictor(folder)
    batch = np.random.default_rng(0).integers(0, 256, (5, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)
    outputs = predictor.run(batch)
    assert outputs.probabilities.shape == (5, 6)
    assert outputs.probabilities.dtype == np.float32
    assert outputs.ood.shape == (5, 2)
    assert outputs.heatmap.shape == (5, tiny.CELLS, tiny.CELLS)
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=1e-6)
    singles = np.concatenate([predictor.run(row[None]).probabilities for row in batch])
    np.testing.assert_allclose(outputs.probabilities, singles, atol=1e-4)
    means = batch.reshape(5, -1, 3).mean(1) / 255
    distances = ((means[:, None] - tiny.COLORS[None]) ** 2).sum(-1)
    expected = np.exp(-tiny.SHARPNESS * distances)
    np.testing.assert_allclose(
        outputs.probabilities, expected / expected.sum(1, keepdims=True), atol=1e-4
    )


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 31, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
)
def test_predictor_rejects_other_batches(folder, batch):
    with pytest.raises(ValueError, match="takes pictures as uint8"):
        Predictor(folder).run(batch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_type": TensorProto.INT32}, "tensor\\(int32\\)"),
        ({"batch": 1}, "N free"),
        ({"size": 16}, "16, 16, 3"),
        ({"rename": {"ood": "scores"}}, "`ood` is missing"),
        ({"classes": 5}, r"\(1, 5\)"),
    ],
)
def test_a_model_that_breaks_the_contract_is_rejected(folder, options, words):
    onnx.save(tiny.model(**options), folder / "model.onnx")
    write_bundle(folder, tiny.describe(folder))
    with pytest.raises(BundleError, match=words):
        Predictor(folder, "model.onnx")


def test_unknown_damaged_and_swapped_models_are_told(folder):
    with pytest.raises(
        BundleError, match="no model 'best.onnx'. It has: model.int8.onnx, model.onnx"
    ):
        Predictor(folder, "best.onnx")
    (folder / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match="not the file that was exported"):
        Predictor(folder, "model.onnx")
    write_bundle(folder, tiny.describe(folder))
    with pytest.raises(BundleError, match="cannot load"):
        Predictor(folder, "model.onnx")
    Predictor(folder)  # the other one still works


def test_the_session_has_the_threads_asked_for_and_does_not_spin(folder):
    options = open_session(folder / "model.onnx", threads=2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(BundleError, match="has no NoSuchProvider"):
        open_session(folder / "model.onnx", providers=["NoSuchProvider"])


def test_reading_is_the_pipeline_of_training(folder, tmp_path):
    predictor = Predictor(folder)
    data = encode_jpeg(np.random.default_rng(0).integers(0, 256, (240, 400, 3), dtype=np.uint8))
    expected = resize_to_model(read_rgb(data, long_side=64), tiny.SIZE)
    assert (
        expected != resize_to_model(read_rgb(data), tiny.SIZE)
    ).any()  # the step over the long side counts
    path = tmp_path / "leaf.jpg"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        np.testing.assert_array_equal(predictor.read(source).pixels, expected)
    with pytest.raises(ImageError):
        predictor.read(b"no picture")


@pytest.mark.parametrize("size", [(50, 40), (64, 48), (900, 500)])
def test_the_size_told_is_the_upright_size_before_shrinking(folder, size):
    predictor = Predictor(folder)
    photo = predictor.read(tiny.picture((9, 99, 9), size, "JPEG"))
    assert (photo.width, photo.height) == size
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 99, 9)).save(buffer, "JPEG", exif=exif)
    turned = predictor.read(buffer.getvalue())
    assert (turned.width, turned.height) == size[::-1]
