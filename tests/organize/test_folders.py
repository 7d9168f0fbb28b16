"""Class folders of whole sources, as people have them."""

import pytest

from common.organize.names import folders
from common.organize.names.parse import ASK_BELOW


def read(paths, **around):
    """{path: (species, disease, whether a person is asked)} of one source's folders."""
    parts = [tuple(path.split("/")) for path in paths]
    found = folders.splits(parts)
    readings = folders.read_folders([found[p][1] for p in parts], **around)
    return {
        path: (
            r.species,
            r.disease,
            r.confidence < ASK_BELOW or r.crop_from in folders.GUESSED,
        )
        for path, r in zip(paths, readings, strict=True)
    }


def split(path):
    return folders.splits([tuple(path.split("/"))])[tuple(path.split("/"))][0]


MANGO = ["Anthracnose", "Bacterial Canker", "Die Back", "Healthy"]


def test_the_title_gives_the_crop_and_asks():
    assert read(MANGO, title="mango_leaf_disease") == {
        "Anthracnose": ("mango", "anthracnose", True),
        "Bacterial Canker": ("mango", "bacterial canker", True),
        "Die Back": ("mango", "die back", True),
        "Healthy": ("mango", "healthy", True),
    }


def test_a_name_that_a_person_gives_needs_no_question():
    assert read(MANGO, name="mango", title="pictures")["Healthy"] == ("mango", "healthy", False)
    found = read(["rust", "healthy"], said=["zorbfruit"] * 2, title="mango")
    assert found["rust"] == ("zorbfruit", "rust", False)


def test_without_a_crop_anywhere_a_folder_is_left_out():
    assert read(MANGO, title="pictures")["Healthy"] == (None, "healthy", True)


def test_the_nearest_folder_that_names_a_plant_gives_the_crop():
    found = read(["maize-dataset-uganda/MLN", "mango/photos/Healthy", "plants/rice/blast"])
    assert found == {
        "maize-dataset-uganda/MLN": ("corn", "lethal necrosis", False),
        "mango/photos/Healthy": ("mango", "healthy", False),
        "plants/rice/blast": ("rice", "blast", False),
    }


def test_a_collections_name_never_becomes_a_species():
    village = ["PlantVillage/Tomato_Early_blight", "PlantVillage/Potato___healthy"]
    assert [r[0] for r in read(village).values()] == ["tomato", "potato"]
    assert read(["Zorbset/Healthy", "Zorbset/Rust"])["Zorbset/Rust"][0] is None


def test_a_folder_beside_known_plants_is_a_plant():
    found = read(["Mango/healthy", "Lemon/healthy", "Zorbtree/healthy", "Zorbtree/diseased"])
    assert found["Zorbtree/healthy"] == ("zorbtree", "healthy", True)


def test_one_plant_among_neighbours_speaks_for_them_within_one_folder():
    found = read(["north/bean_rust", "north/healthy", "south/healthy"])
    assert found["north/healthy"] == ("bean", "healthy", True)
    assert found["south/healthy"][0] is None


def test_title_and_disease_that_disagree_are_asked_about():
    found = read(["Citrus Canker", "Healthy Leaf"], title="Lemon Leaf Disease Dataset")
    assert found["Citrus Canker"] == ("lemon", "citrus canker", True)
    assert read(["blast", "tungro"], title="yolo_maize")["tungro"][2]


def test_varieties_and_places_below_a_disease_are_no_species():
    found = read(["Tomato/rust/cherry", "Tomato/Early_blight/field", "Potato/Early_blight/field"])
    assert found == {
        "Tomato/rust/cherry": ("tomato", "rust", True),
        "Tomato/Early_blight/field": ("tomato", "early blight", False),
        "Potato/Early_blight/field": ("potato", "early blight", False),
    }


def test_the_state_may_stand_above_the_plant():
    assert read(["Diseased/Tomato", "Healthy/Tomato"]) == {
        "Diseased/Tomato": ("tomato", "diseased", False),
        "Healthy/Tomato": ("tomato", "healthy", False),
    }


def test_a_folder_that_names_its_plant_again_needs_no_question():
    found = read(["bean/train/bean_rust", "bean/train/healthy"], title="pictures")
    assert [r[2] for r in found.values()] == [False, False]


def test_varieties_are_asked_about():
    for reading in read(["Apple Braeburn 1", "Apple Golden 1", "Pear Red 1"]).values():
        assert reading[2]


@pytest.mark.parametrize(
    ("folder", "number"),
    [
        ("train_set", 0),
        ("Training", 0),
        ("train_images", 0),
        ("train_mini", 0),
        ("traning", 0),
        ("Train/Train", 0),
        ("val_images", 1),
        ("dev", 1),
        ("Validation Data", 1),
        ("Test Data", 2),
        ("holdout_test", 2),
        ("training/PLD_224/test", 2),
        ("testimony", -1),
        ("latest", -1),
        ("Original Dataset", -1),
    ],
)
def test_split_folders_in_every_wording(folder, number):
    assert split(f"{folder}/Tomato___rust") == number
    assert split(f"x/{folder}/Tomato___rust") == number


def test_one_class_of_two_splits():
    paths = [("Weed_train",), ("Weed_test",), ("soil_test",)]
    assert folders.splits(paths) == {
        ("Weed_train",): (0, ("Weed",)),
        ("Weed_test",): (2, ("Weed",)),
        ("soil_test",): (-1, ("soil_test",)),
    }


@pytest.mark.parametrize(
    "folder",
    [
        "original",
        "Augmented Dataset",
        "raw",
        "color",
        "grayscale",
        "segmented",
        "rotated",
        "white background",
        "RGB_224x224",
        "Dataset_without_annotation",
        "wo aug 224",
        "New folder",
        "zip_files",
    ],
)
def test_words_of_collections_tell_nothing(folder):
    paths = [f"{folder}/Tomato___rust", f"Tomato___rust/{folder}"]
    assert read(paths) == dict.fromkeys(paths, ("tomato", "rust", False))
    assert read([folder])[folder][0] is None


def test_negations_are_asked_about():
    assert read(["Not tomato", "tomato"])["Not tomato"][2]


def test_pictures_without_a_plant_are_told_apart():
    names = ["Background_without_leaves", "soil", "Negative", "no leaf"]
    readings = folders.read_folders([(name,) for name in names])
    assert all(r.not_plant and r.species is None for r in readings)


def test_codes_are_asked_about():
    found = read(["YELLOW-RUST-19/0", "YELLOW-RUST-19/R", "YELLOW-RUST-19/S"], name="wheat")
    assert all(r[0] == "wheat" and r[2] for r in found.values())


def test_a_taxonomy_gives_genus_and_species():
    name = "05729_Plantae_Bryophyta_Andreaeopsida_Andreaeales_Andreaeaceae_Andreaea_rothii"
    zea = "06301_Plantae_Tracheophyta_Liliopsida_Poales_Poaceae_Zea_mays"
    found = read([name, zea, "07823_Plantae_Tracheophyta_Asteraceae_Helianthus_annuus"])
    assert found[name] == ("andreaea rothii", "healthy", True)
    assert found[zea][:2] == ("corn", "healthy")


@pytest.mark.parametrize(
    ("folder", "species", "disease"),
    [
        ("芒果炭疽病", "mango", "anthracnose"),
        ("番茄_早疫病", "tomato", "early blight"),
        ("水稻健康", "rice", "healthy"),
        ("Roya del café", "coffee", "rust"),
        ("Hoja sana maíz", "corn", "healthy"),
        ("milho ferrugem", "corn", "rust"),
        ("Folha saudável/Soja", "soybean", "healthy"),
        ("bulai-jagung", "corn", "downy mildew"),
        ("penyakit-jagung/karat-daun", "corn", "leaf rust"),
        ("aam patti rog", "mango", "diseased"),
    ],
)
def test_other_languages(folder, species, disease):
    assert read([folder])[folder][:2] == (species, disease)


def test_organs_between_plant_and_disease_are_neither():
    names = ["Guava_fruit_Scab", "Banana_leaf_Banana_Scab_Moth", "Mango_leaf_Anthracnose"]
    assert [r[:2] for r in read(names).values()] == [
        ("guava", "scab"),
        ("banana", "scab moth"),
        ("mango", "anthracnose"),
    ]
    compounds = read(["Tomato_leaf_spot", "Wheat_leaf_rust", "Apple_fruit_rot"])
    assert [r[1] for r in compounds.values()] == ["leaf spot", "leaf rust", "fruit rot"]


def test_names_of_plants_alone_are_whole_species():
    names = ["pink primrose", "globe thistle", "fire lily", "passion flower", "blackberry lily"]
    assert [r[:2] for r in read(names).values()] == [(name, "healthy") for name in names]
    assert all(r[2] for r in read(names).values())
