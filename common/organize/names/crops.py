"""Curated words for reading class names: plants, diseases, healthy and sick words, abbreviations,
and synonyms.

The tables seed `parse.parse_class_names`; what they lack is learned from the list of names at hand.
To teach the parser a plant or a disease, add it here. A plant entry is "name = other ways to write
it".
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _plants(text: str, named: bool = False) -> dict[tuple[str, ...], str]:
    """Words of a phrase -> name of the plant; named: with the names before the equals signs."""
    table: dict[tuple[str, ...], str] = {}
    for entry in text.split(";"):
        name, _, others = entry.partition("=")
        for phrase in filter(str.strip, [name] * named + others.split(",")):
            table.setdefault(tuple(phrase.split()), " ".join(name.split()))
            table.setdefault(("".join(phrase.split()),), " ".join(name.split()))
    return table


# Latin names: "name = genus species", and a bare genus where one crop is meant by it.
LATIN = _plants("""
tomato = lycopersicon esculentum, lycopersicum esculentum; apple = malus, malus pumila, malus
sylvestris; pear = pyrus communis; peach = prunus persica; cherry = prunus avium, prunus cerasus;
plum = prunus domestica; apricot = prunus armeniaca; almond = prunus dulcis; grape = vitis;
strawberry = fragaria x ananassa, fragaria ananassa; raspberry = rubus idaeus; blueberry =
vaccinium corymbosum; orange = citrus sinensis, citrus x sinensis; lemon = citrus limon, citrus x
limon; mandarin = citrus reticulata; grapefruit = citrus paradisi; lime = citrus aurantifolia;
pomelo = citrus maxima; banana = musa acuminata; wheat = triticum aestivum; rice = oryza; corn =
zea; barley = hordeum; oat = avena sativa; rye = secale cereale; sorghum = sorghum vulgare;
sugarcane = saccharum officinarum; soybean = glycine; chickpea = cicer arietinum; lentil = lens
culinaris; peanut = arachis hypogaea; cowpea = vigna unguiculata; mung bean = vigna radiata; black
gram = vigna mungo; pigeon pea = cajanus cajan; broad bean = vicia faba; coffee = coffea arabica,
coffea canephora; tea = camellia sinensis; cacao = theobroma cacao; cotton = gossypium hirsutum;
rapeseed = brassica napus; indian mustard = brassica juncea; cabbage = brassica oleracea; tobacco =
nicotiana tabacum; sugar beet = beta vulgaris; flax = linum usitatissimum; sesame = sesamum
indicum; hop = humulus lupulus; hemp = cannabis sativa; alfalfa = medicago sativa; melon = cucumis
melo; watermelon = citrullus; pumpkin = cucurbita maxima; squash = cucurbita moschata; zucchini =
cucurbita pepo; bottle gourd = lagenaria siceraria; bitter gourd = momordica charantia; bell pepper
= capsicum annuum; chili pepper = capsicum frutescens; eggplant = solanum melongena; okra =
abelmoschus esculentus; spinach = spinacia oleracea; lettuce = lactuca; carrot = daucus carota;
celery = apium graveolens; garlic = allium sativum; ginger = zingiber officinale; turmeric =
curcuma longa; cassava = manihot; sweet potato = ipomoea batatas; taro = colocasia esculenta;
avocado = persea americana; mango = mangifera; papaya = carica; guava = psidium; pomegranate =
punica; pineapple = ananas comosus; cashew = anacardium occidentale; coconut = cocos nucifera; oil
palm = elaeis guineensis; date palm = phoenix dactylifera; areca nut = areca catechu; olive = olea
europaea; fig = ficus carica; walnut = juglans regia; persimmon = diospyros kaki; jackfruit =
artocarpus heterophyllus; lychee = litchi chinensis; longan = dimocarpus longan; kiwi = actinidia
deliciosa, actinidia chinensis; mulberry = morus alba; neem = azadirachta indica; basil = ocimum
basilicum; holy basil = ocimum tenuiflorum, ocimum sanctum, tulsi, tulasi; moringa = moringa
oleifera; curry leaf = murraya koenigii; betel = piper betle; jasmine = jasminum; hibiscus =
hibiscus rosa sinensis; oleander = nerium oleander; jamun = syzygium cumini; fenugreek = trigonella
foenum graecum; basella = basella alba; chinar = platanus orientalis; alstonia = alstonia
scholaris; arjun = terminalia arjuna; bael = aegle marmelos; jatropha = jatropha curcas; castor =
ricinus communis; sandalwood = santalum album; horse chestnut = aesculus hippocastanum; rubber =
hevea brasiliensis
""")

# The same plants in languages in which public data sets are labelled (Spanish, Portuguese, French,
# Indonesian, Hindi).
FOREIGN = _plants("""
tomato = tomat, tamatar; potato = papa, patata, batata, kentang, pomme de terre, aloo; corn = maiz,
milho, jagung, mais, makka; wheat = trigo, ble, gandum, gehun; rice = arroz, padi, riz; bean =
frijol, feijao, haricot, buncis; soybean = soja, kedelai; coffee = cafe, kopi; banana = platano,
banano, banane, pisang, kela; grape = uva, vid, vigne, videira, anggur; apple = manzana, macieira,
pomme, apel; orange = naranja, laranja, jeruk; lemon = limon, limao, citron jaune; strawberry =
fresa, morango, fraise, stroberi; chili pepper = cabai, cabe, piment, mirch; bell pepper =
pimiento, pimentao, poivron; cassava = yuca, mandioca, singkong, ubi kayu; sugarcane = cana de
azucar, cana de acucar, tebu; cotton = algodon, algodao, kapas, coton; onion = cebolla, cebola,
bawang merah; garlic = ajo, alho, bawang putih; cucumber = pepino, mentimun, concombre; mango =
mangga, mangue, aam; papaya = pepaya, mamao; guava = goiaba, jambu biji; peach = durazno,
melocoton, pessego; pear = pera, poire; plum = ciruela; cherry = cereza; tea = teh; peanut =
cacahuate, amendoim, kacang tanah; avocado = aguacate, palta, abacate; sunflower = girasol,
girassol, tournesol; barley = cebada, cevada, orge; olive = olivo, oliveira; spinach = bayam,
espinaca; eggplant = berenjena, terong; oil palm = kelapa sawit; coconut = kelapa; cabbage = kubis,
repollo, chou; lettuce = lechuga, alface, selada, laitue
""")

# Plants met less often: known, but no misspelling is mended into them.
RARE = _plants(
    """
black locust; honey locust; tree of heaven; silver birch; sweet basil; yew; aglaonema; anthurium;
bergamot; bird of paradise; bougainvillea; breadfruit; cactus; calathea; canna; chayote; cherimoya;
clematis; croton; euonymus; forsythia; frangipani = plumeria; goji; hawthorn; hollyhock;
honeysuckle; horse gram; hosta; impatiens; ixora; kalanchoe; kodo millet; kumquat; lantana; lemon
balm; passion flower; little millet; medlar; monstera; noni; pelargonium; photinia; pothos; proso
millet; rambutan; rose apple; rowan; salak = snake fruit, salacca, salak palm; sea buckthorn;
snapdragon; soursop; spider plant; teff; triticale; wax apple; wisteria; wood apple; yuzu; barnyard
millet
""",
    named=True,
)

_COMMON = _plants(
    """
acacia; agave; alfalfa = lucerne; almond; aloe vera = aloe, aloevera; alstonia = alstonia
scholaris; amaranth; anemone; apple = malus domestica; apricot; areca nut = arecanut, areca, areca
palm, betel nut, betelnut; arjun; artichoke; ash; ash gourd = wax gourd; asparagus; aspen; avocado;
azalea; bael; balsam; bamboo; banana = musa, plantain; barley = hordeum vulgare; basella = malabar
spinach; basil; bay leaf; bean = common bean, kidney bean, phaseolus vulgaris; bean sprout; beech;
beet; beetroot; begonia; bell pepper = capsicum, sweet pepper, pepper bell, bellpepper, paprika;
betel = betel vine; birch; bitter gourd = bitter melon, karela, bittergourd, bitter guard; black
gram = blackgram, urd, urad, urd bean, urdbean; black pepper = piper nigrum; blackberry; blueberry;
bok choy = pak choi, pakchoi; bottle gourd = bottlegourd, lauki; boxwood; broad bean = faba bean,
fava bean; broccoli; brussels sprout; buckwheat; cabbage; cacao = cocoa; camellia; camphor;
cantaloupe; cardamom = cardamon, elaichi; carnation; carrot; cashew = cashewnut, cashew nut;
cassava = manihot esculenta, manioc, tapioca; castor = castor bean; cauliflower; cedar; celery;
chamomile; chard = swiss chard; cherry = sour cherry, sweet cherry; chestnut; chickpea = chick pea,
bengal gram, gram, garbanzo; chicory; chili pepper = chili, chilli, chile, chilly, chilies,
chillies, chilli pepper, hot pepper; chinar; chinese cabbage = napa cabbage; chives; chrysanthemum;
cinnamon; citron; citrus; clove; clover; cluster bean = guar; coconut = coconut palm, coconut tree;
coffee = coffea, robusta coffee, arabica coffee; coriander = cilantro; corn = maize, zea mays, corn
maize, sweet corn, sweetcorn; cotton = gossypium; cowpea; cranberry; crape myrtle; cucumber =
cucumis sativus, cucumbers; cucurbit = cucurbits; cumin; currant; curry leaf = curry, curry tree;
custard apple = sugar apple; cyclamen; dahlia; daisy; dandelion; date palm; dill; dogwood;
dracaena; dragon fruit = dragonfruit, pitaya, pitahaya; durian; eggplant = brinjal, aubergine, egg
plant, solanum melongena; elder = elderberry; elm; eucalyptus; fennel; fenugreek; fern; ficus; fig;
finger millet = ragi; flax = linseed; foxtail millet; gardenia; garlic; geranium; ginger; ginkgo;
ginseng; gladiolus; gooseberry; gourd; grape = grapevine, grape vine, grapes, vitis vinifera;
grapefruit; green bean = french bean; green gram = greengram; guava = psidium guajava, gauva;
hazelnut; hemp = cannabis; hibiscus; holly; hop = hops; horseradish; hydrangea; indian mustard;
iris; ivy gourd = kundru; jackfruit = jack fruit; jamun = java plum, black plum; jasmine; jatropha;
jujube = ber; juniper; jute; kale; kiwi = kiwifruit, kiwi fruit; kohlrabi; lavender; leek; lemon;
lemongrass = lemon grass; lentil = masoor; lettuce = lactuca sativa; lilac; lily; lima bean; lime;
linden; longan; loquat; lotus; lychee = litchi; macadamia; magnolia; mandarin = tangerine; mango =
mangifera indica; mangosteen; maple; marigold; melon = muskmelon, musk melon; millet; mint; moth
bean; money plant; money tree; moringa = drumstick; mulberry; mung bean = moong, mungbean, mung,
moong bean; mustard; nectarine; neem; nutmeg; oak; oat = oats; oil palm; okra = ladyfinger, lady
finger, ladys finger, bhindi; oleander; olive; onion = allium cepa; orange = sweet orange, sour
orange, navel orange, bitter orange; orchid; oregano; palm; pansy; papaya = pawpaw, carica papaya;
parsley; parsnip; passion fruit = passionfruit; pea = peas, pisum sativum, green pea; peace lily;
peach; peanut = groundnut, ground nut; pear; pearl millet = bajra; pecan; peony; pepper;
peppermint; persimmon; petunia; pigeon pea = pigeonpea, red gram, redgram, arhar, toor; pine;
pineapple = pine apple; pistachio; plum; poinsettia; pomegranate = punica granatum, anar; pomelo =
pummelo; pongamia = pongamia pinnata; poplar; poppy; potato = solanum tuberosum; primrose; pulses =
pulse; pumpkin; quince; quinoa; radish; rapeseed = canola, oilseed rape, rape; raspberry;
rhododendron; rhubarb; rice = paddy, paddy rice, rice paddy, oryza sativa; ridge gourd = luffa;
rose; rosemary; rubber = rubber tree, hevea; rubber plant; rye; safflower; saffron; sage; white
sapote; black sapote; mamey sapote; sapota = sapodilla, chikoo, chiku; sesame = til; shallot; snake
gourd; snake plant; snap bean; sorghum = jowar, sorghum bicolor; sorrel; soybean = soya, soy,
soyabean, soya bean, soy bean, glycine max, soybeans; spinach; sponge gourd; spruce; squash; star
fruit = starfruit, carambola; strawberry = fragaria; sugar beet = sugarbeet; sugarcane = sugar
cane, cane, saccharum; sunflower = helianthus annuus, sun flower; sweet pea; sweet potato =
sweetpotato; sycamore; tamarind; taro = colocasia; tea = camellia sinensis; teak; tree tomato =
tamarillo; tobacco = nicotiana; tomato = solanum lycopersicum, tomatoe, tomate, tomatos; tulip;
turmeric; turnip; vanilla; velvet bean; viola; violet; walnut; wasabi; water spinach; watermelon =
water melon, citrullus lanatus; wheat = triticum, common wheat, bread wheat; wild rice; willow;
winged bean; yam; zinnia; zucchini = courgette
""",
    named=True,
)
PLANTS = {**LATIN, **FOREIGN, **RARE, **_COMMON}  # words of a phrase -> name in the class tree

# Disease names that hold the name of a plant they are not named for -> the plant they imply where
# no other is given.
_BORROWED = """
cedar apple rust = apple; shepherd purse; potato leafhopper; colorado potato beetle = potato;
cotton bollworm; tobacco caterpillar; tobacco cutworm; tobacco budworm; tea mosquito; corn earworm;
orange rust; orange spot; orange spots
"""
BORROWED = {
    tuple(name.split()): plant.strip() or None
    for name, _, plant in (entry.partition("=") for entry in _BORROWED.split(";"))
}

HEALTHY = _words("""
healthy health normal fresh uninfected undiseased healty helthy healthly sano sana sanos sanas
saludable saudavel sadia sadio sain saine saines sehat nodisease
""")
SICK = _words("""
disease diseases diseased unhealthy infected sick affected abnormal ill defected damaged unhealth
enferma enfermo enfermos doente malade sakit
""")
ORGANS = _words("""
leaf leaves leafs leave foliage fruit fruits plant plants stem stems root roots flower flowers pod
pods tuber tubers bark trunk branch branches twig twigs seed seeds seedling seedlings bulb shoot
shoots tree trees crop crops panicle ear ears spike boll bolls
""")
# Words that tell of folders, pictures, splits, backgrounds or severity and never of the plant or
# its disease.
NOISE = _words("""
general serious mild moderate severe severity slight stage stages level levels train training test
testing val valid validation image images img imgs photo photos picture pictures pics dataset
datasets data set class classes label labels category raw original originals augmented aug augment
unused used background backgrounds field lab laboratory indoor outdoor color colour segmented
grayscale resized edited cropped sample samples new old final copy january february march april
june july august september october november december symptom symptoms detected identified various
other others type types vegetable vegetables cereal cereals crops plantvillage plantdoc kaggle png
jpg jpeg zip including sour infection infestation the an sp spp
""")
LINKS = _words("on of in at from by with without for del da do")

# A head word can end the name of a disease, pest or disorder; most take "disease" as an idle tail.
HEADS = _words("""
sunblotch blister wound wounds withering flaccidity larva larvae grub grubs distortion virosis
bacteriosis mycosis pustules anthracnose blight blights blast rust rusts rot rots mildew mold mould
molds scab smut smuts wilt wilts canker greening scorch scald sigatoka spot spots blotch speck
huanglongbing esca melanose gummosis dieback decline roll leafroll virus viruses measles ergot bunt
chaff galls gall knot pox psorosis tungro leprosis sclerotinia scurf tristeza damping variegation
rosette phyllody necrosis dwarf stunt yellows chlorosis russet russeting blackleg clubroot toppling
deficiency toxicity excess burn sunburn sunscald scalding injury malformation cracking crack
stenosis drooping wilting yellowing discoloration browning dropping shrivelled freckle point
ringspot ringspots fleck flecks back syndrome death apoplexy warts broom brooms fumagine oidium
tumor pitting splitting phytoplasma viroid edema oedema flyspeck leprosy exocortis buckeye smudge
smoulder mummification bleeding shrivel roya ferrugem rouille cercosporiose mildiou septoria
botrytis cercospora
""")
PESTS = _words("""
defoliator skipper semilooper phylloxera psyllids louse lice bagworm rootworm aphid aphids mite
mites miner miners leafminer thrips thrip whitefly whiteflies armyworm armyworms bollworm budworm
hornworm cutworm earworm webworm worm worms weevil weevils borer borers beetle beetles hopper
hoppers leafhopper planthopper grasshopper grasshoppers hispa bug bugs mealybug mealybugs midge
caterpillar caterpillars scale scales moth looper slug slugs snail snails psyllid psylla fly flies
maggot nematode nematodes insect insects pest pests locust roller folder leaffolder webber
skeletonizer sawfly termite cricket ladybird dubas jassid jassids helopeltis diabrotica
""")
# Signs: they name a disease too, but "disease" after them is part of the name ("mosaic disease").
SIGNS = _words("""
mosaic mottle streak streaks stripe stripes curl curling crinkle bunchy top pocket panama
virescence measles lesion lesions hole holes weeds weed spotted wilted dried dry frogeye frost
chilling drought hail nutrient nutrition yellow yellowish purple damage damages patches patch
""")
# Fungi, bacteria and other causes by their Latin genus; a name that begins with one names no plant.
PATHOGENS = _words("""
cordana alternaria albugo armillaria ascochyta aspergillus bipolaris blumeria botryosphaeria
botrytis bremia candidatus cephalosporium ceratocystis cercospora cladosporium claviceps
cochliobolus colletotrichum corynespora cronartium curvularia cylindrocladium dickeya didymella
diaporthe diplocarpon diplodia dothistroma drechslera elsinoe erwinia erysiphe exserohilum fusarium
ganoderma geotrichum gibberella gloeosporium gnomonia golovinomyces guignardia gymnosporangium
helminthosporium hemileia hymenoscyphus isariopsis lasiodiplodia leptosphaeria leveillula
liberibacter lophodermium macrophomina magnaporthe marssonina melampsora melampsoridium meloidogyne
microdochium moniliophthora monilia monilinia mycosphaerella nectria neofusicoccum nigrospora
oidiopsis oidium ophiostoma pectobacterium penicillium peronosclerospora peronospora pestalotia
pestalotiopsis phakopsora phoma phomopsis phragmidium phyllosticta phytophthora plasmodiophora
plasmopara podosphaera pseudomonas pseudocercospora pseudoperonospora puccinia pyrenophora
pyricularia pythium ralstonia ramularia rhizoctonia rhizopus rhynchosporium rhytisma sarocladium
sclerospora sclerotinia sclerotium septoria sphaceloma sphaerotheca spilocaea spiroplasma
sporisorium stemphylium stenocarpella taphrina thielaviopsis tilletia tranzschelia trichoderma
uromyces ustilago venturia verticillium wilsonomyces xanthomonas xylella zymoseptoria
""")
MODIFIERS = PATHOGENS | _words("""
scarring dead swollen enation sterility bunch mummified eaten drying zonal kernel grain bud
physoderma early late bacterial bacteria fungal fungus viral powdery downy black brown red gray
grey white yellow orange green dark blue pink silver golden purple northern southern common angular
target tar ring halo net loose covered head false sheath neck node collar crown foot basal end
blossom cigar bitter soft dry wet belly gummy stem stalk tip shot bird bull eye eyed frog peacock
algal sooty cottony water fruit leaf cavity mummy berry two spider rachis sour citrus tan panama
anthracnose nitrogen phosphorus potassium magnesium calcium iron zinc boron manganese sulfur
sulphur copper fall army cutting sticky mealy lace stink shield flea broad rusty minute narrow
small little large multiple chlorotic necrotic lethal physiological physiology frogeye styler
stylar grassy ratoon pokkah boeng root fire shepherd purse cucumber colorado wooly woolly hairy
sugary floral sun cold heat herbicide chemical mechanical pesticide parlatoria blanchardi aculus
olearius tikka corynespora exserohilum sigatoka scaly slime bract mold zonate eyespot wart pustule
sarocladium cephalosporium karnal flag take all pestalotia didymella cochliobolus tobacco maydis
turcicum vein clearing banded banding die sudden witches witch spongy tissue abiotic cyst hawk
asian giant japanese tent club sucking chewing virescence zippering catface ripe hollow heart
pitted gibberella mycosphaerella elsinoe
""")
# Words of diseases in other languages. They are known, but no misspelling is mended into them.
ELSEWHERE = _words("""
antracnose antracnosis antracnosa antraknosa bakteri bercak blas brusone busuk carvao
cercosporiosis daun gusano hawar karat keriting mancha manchas marchitez mildiu minador moniliasis
mosaico negra negro oidio oidium podredumbre podridao pyriculariose pulgon requeima sarna tavelure
tizon tardio temprano foliar amarilla amarillo amarela bacteriana bacteriano roja rojo jaune noire
brune kuning hitam coklat putih virose vermelha pinta preta
""")
DISEASE_WORDS = ELSEWHERE | HEADS | PESTS | SIGNS | MODIFIERS

# With a word before them that no table holds, these make a plant of its own: "salak palm".
KINDS = _words(
    "palm gourd bean pea lily millet melon cherry plum grass fruit berry nut fern orchid pine oak "
    "maple"
)
LEAFY = _words(
    "leaf leaves leafs leave foliage plant plants trees fruits flowers crop crops seed seeds "
    "seedling seedlings shoot shoots"
)
PLANT_ENDS = _words("tree fruit flower root grass weed berry vine")  # may end a plant's name

# Before these the word "leaf", "stem" ... belongs to the disease: "leaf spot", "stem rust", "fruit
# rot".
COMPOUND = (
    HEADS
    | PESTS
    | _words("""
curl curling crinkle crumple streak streaks stripe stripes sheath tip roll miner mottle spotted
hole holes margin distortion reddening drop fall necrosis end lesion lesions scar scars
""")
)
# Diseases that are called the same on every organ: "fruit scab" is scab.
WITHOUT_ORGAN = _words("scab scabs sigatoka anthracnose mildew huanglongbing melanose esca mosaic")
# Idle words behind a complete disease name.
IDLE_TAILS = _words("""
disease diseases fungus fungi fungal bacteria bacterium bacterial oomycete pathogen pathogens
damage infection infestation attack
""")
COLOURS = _words("""
common purple yellow black brown red gray grey white orange green dark blue pink silver golden
large small early late
""")
SPELLINGS = dict(mould="mold", moulds="molds", grey="gray", colour="color", sulphur="sulfur")

# Abbreviation = species it implies: disease.
_ABBREVIATIONS = """
ylcv = yellow leaf curl virus; tylcv = tomato: yellow leaf curl virus; tomv = tomato: mosaic virus;
tmv = tobacco mosaic virus; cmv = cucumber mosaic virus; tswv = tomato: spotted wilt virus; zymv =
zucchini: yellow mosaic virus; pvy = potato: virus y; cbb = cassava: bacterial blight; cbsd =
cassava: brown streak disease; cgm = cassava: green mottle; cmd = cassava: mosaic disease; hlb =
huanglongbing; blb = bacterial leaf blight; bls = bacterial leaf streak; nlb = northern leaf
blight; nclb = corn: northern leaf blight; slb = southern leaf blight; gls = gray leaf spot; msv =
corn: streak virus; mln = corn: lethal necrosis; mdmv = corn: dwarf mosaic virus; faw = fall
armyworm; ymv = yellow mosaic virus; bbtv = banana: bunchy top virus; mlb = corn: leaf blight; als
= angular leaf spot; cssvd = cacao: swollen shoot virus disease; rymv = rice: yellow mottle virus;
bxw = banana: xanthomonas wilt; clr = coffee: leaf rust; clcuv = cotton: leaf curl virus; pstvd =
potato: spindle tuber viroid; prsv = ringspot virus
"""
ABBREVIATIONS: dict[str, tuple[str | None, str]] = {
    short.strip(): (plant.strip() or None, " ".join(disease.split()))
    for short, _, long in (entry.partition("=") for entry in _ABBREVIATIONS.split(";"))
    for plant, _, disease in [long.rpartition(":")]
}

# Names of one disease, per line; the first is the one that reads best. Used to propose merges and
# to drop a synonym written behind the name without brackets ("esca black measles").
_SAME = """
huanglongbing; citrus greening; greening
esca; black measles
leaf blight; isariopsis leaf spot
gray leaf spot; cercospora leaf spot
black sigatoka; black streak; black leaf streak
stripe rust; yellow rust
leaf rust; brown rust
stem rust; black rust
fusarium wilt; panama; panama disease
frogeye leaf spot; frogeye spot; frogeye; frog eye leaf spot
two spotted spider mite; spider mite
yellow leaf curl virus; yellow leaf curl; yellow curl virus
bacterial streak; black chaff
leaf miner; leafminer
dieback; die back
downy mildew; mildiou
"""
SAME_DISEASE = [line.split("; ") for line in _SAME.strip().splitlines()]
