"""Whole lists of class names as public data sets have them, in our own words, and lists of plants
that no table knows.
"""

import pytest

from common.organize.names.parse import ASK_BELOW, parse_class_names

# One list per block: raw name = plant: disease; "?" where the name does not say its plant.
LISTS = """
Mango___Die Back = mango: die back
Diseased_Mango = mango: diseased
fruit_fly_guava = guava: fruit fly
Disease Free guava = guava: healthy
Wilt_guava = guava: wilt
Leaf Scald of Rice = rice: leaf scald
thirps on  cotton = cotton: thrips
Bean - ALS = bean: angular leaf spot
Leaf with scab - Apple = apple: scab
[Apple] powdery mildew = apple: powdery mildew
Ａｐｐｌｅ＿ｓｃａｂ = apple: scab
Caterpillar-affected cabbage leaf = cabbage: caterpillar
Onion Bulb_blight-D = onion: bulb blight
Potatoe_Late_Blight = potato: late blight

Cassavabrown_streak_disease = cassava: brown streak disease
Teahealthy = tea: healthy
AppleBlack_rot = apple: black rot
Corn(maize)Northern_LeafBlight = corn: northern leaf blight
Pepper__bell___healthy = bell pepper: healthy
Tomato__Tomato_YellowLeaf__Curl_Virus = tomato: yellow leaf curl virus
Gauva_diseased = guava: diseased

blast = ?: blast
dead_heart = ?: dead heart
hispa = ?: hispa
normal = ?: healthy
downy_mildew = ?: downy mildew

Solanum lycopersicum - Alternaria solani = tomato: alternaria solani
Musa_acuminata___Mycosphaerella_fijiensis = banana: mycosphaerella fijiensis
Acer_palmatum___Phyllosticta_minima = acer palmatum: phyllosticta minima
Brassica_oleracea___Plasmodiophora_brassicae = cabbage: plasmodiophora brassicae
Azadirachta Indica (Neem) = neem: healthy
Ficus Religiosa (Peepal Tree) = ficus religiosa: healthy
Mango (Alternaria) = mango: alternaria
wheat rust (puccinia spp.) = wheat: rust
cabbage club root (plasmodiophora brassicae) = cabbage: club root

My photos/Potato/Late blight = potato: late blight
Fruits/Apple/Apple_Scab = apple: scab
Leaf Diseases/Mango/Anthracnose = mango: anthracnose
healthy/Soybean leaf = soybean: healthy

Maíz_sano = corn: healthy
Padi_hawar_daun = rice: leaf blight
Soja_ferrugem = soybean: rust
jagung sehat = corn: healthy
Pomme de terre_mildiou = potato: mildiou
"""


@pytest.mark.parametrize("block", LISTS.strip().split("\n\n"))
def test_names_of_public_kinds(block: str) -> None:
    rows = [line.split(" = ") for line in block.splitlines()]
    parsed = parse_class_names([raw for raw, _ in rows])
    answers = {p.raw: f"{p.species or '?'}: {p.disease}" for p in parsed}
    assert answers == {raw: want for raw, want in rows}
    assert all(p.confidence < ASK_BELOW for p in parsed if p.species is None)


PLANTS = """hairy vetch; black chokeberry; elephant ear; lemon thyme; red osier; quercus robur;
tilia cordata; feijoa; camu camu; zorb; field bindweed; giant hogweed; wood sorrel; prickly pear;
ulluco; japanese knotweed; rosa canina; sea holly"""
DISEASES = [
    "healthy",
    "leaf spot",
    "rust",
    "powdery mildew",
    "koleroga",
    "erysiphe alphitoides",
    "crown gall",
    "little leaf",
    "diseased",
]


def lists_of(form: str) -> list[tuple[str, str, str]]:
    """(raw name, plant, disease): five diseases for each plant. {P} is the plant with capitals, {p}
    joined like the form.
    """
    joint = next((mark for mark in "_-" if f"}}{mark}{{" in form), " ")
    rows = []
    for i, plant in enumerate(" ".join(words.split()) for words in PLANTS.split(";")):
        for disease in (DISEASES[(i + k) % len(DISEASES)] for k in range(5)):
            raw = form.format(
                P=plant.title().replace(" ", "_" if "__" in form else " "),
                p=plant.replace(" ", joint),
                D=disease.title(),
                d=disease.replace(" ", joint),
            )
            rows.append((raw, plant, disease))
    return rows


@pytest.mark.parametrize(
    "form", ["{P}___{D}", "{p}_{d}", "{P} {d}", "{P} - {D}", "{P}/{d}", "{P} ({d})", "{p}-{d}"]
)
def test_lists_of_unknown_plants(form: str) -> None:
    """The list itself carries plants in no table beside known and unknown diseases; what it leaves
    unsure is asked.
    """
    rows = lists_of(form)
    parsed = parse_class_names([raw for raw, _, _ in rows])
    right = [(p.species, p.disease) == row[1:] for p, row in zip(parsed, rows, strict=True)]
    sure = [ok for ok, p in zip(right, parsed, strict=True) if p.confidence >= ASK_BELOW]
    wrong = [(p.raw, p.species, p.disease) for ok, p in zip(right, parsed, strict=True) if not ok]
    assert sum(right) >= 0.95 * len(right), wrong
    assert sum(sure) >= 0.98 * len(sure), wrong
    assert len(sure) >= 0.5 * len(rows), wrong


def test_state_first_and_unknown_plants() -> None:
    names = [
        f"{state} {plant}"
        for plant in ("Hairy Vetch", "Zorb", "Sea Holly")
        for state in ("Healthy", "Diseased")
    ]
    assert [(p.species, p.disease) for p in parse_class_names(names)] == [
        (plant, state)
        for plant in ("hairy vetch", "zorb", "sea holly")
        for state in ("healthy", "diseased")
    ]


def test_a_list_of_plants_only() -> None:
    names = ["Maize", "Sugar beet", "Charlock", "Cleavers", "Fat Hen", "Scentless Mayweed", "Mango"]
    parsed = parse_class_names(names)
    assert {p.disease for p in parsed} == {"healthy"}
    assert all(p.confidence < ASK_BELOW for p in parsed)
    assert [p.species for p in parsed][2:6] == [
        "charlock",
        "cleavers",
        "fat hen",
        "scentless mayweed",
    ]
    other = parse_class_names(["Charlock", "Maize rust", "Apple scab", "Mango wilt"])[0]
    assert other.species is None  # among diseases it may be a pest or a code


def test_a_known_plant_inside_an_unknown_one_is_not_taken_boldly() -> None:
    alone = parse_class_names(["lemon thyme rust", "apple scab"])[0]
    assert alone.confidence < ASK_BELOW
    several = parse_class_names(
        ["lemon thyme rust", "lemon thyme healthy", "lemon thyme leaf spot", "lemon canker"]
    )
    assert [p.species for p in several] == ["lemon thyme"] * 3 + ["lemon"]
    modifier = parse_class_names(["tomato zorbic rot", "tomato zorbic blight", "tomato rust"])
    assert [p.species for p in modifier] == ["tomato"] * 3
