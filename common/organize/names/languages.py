"""Words for crops and diseases in Chinese, Spanish, Portuguese, Indonesian and Hindi (in Latin
letters), with the English words that the parser's tables hold.

Small on purpose: what labels of public collections and extension services write. To teach the
parser another phrase, add it here, without accents.
"""

import functools
import re
import unicodedata

# Chinese needs no spaces around it: the longest phrase that fits is taken.
_CHINESE = """
番茄 西红柿 = tomato; 马铃薯 土豆 = potato; 玉米 = corn; 小麦 = wheat; 水稻 稻 = rice; 大豆 =
soybean; 棉花 = cotton; 苹果 = apple; 葡萄 = grape; 柑橘 柑桔 = citrus; 橙 = orange; 柠檬 = lemon;
桃 = peach; 梨 = pear; 樱桃 = cherry; 草莓 = strawberry; 芒果 = mango; 香蕉 = banana; 黄瓜 =
cucumber; 西瓜 = watermelon; 南瓜 = pumpkin; 辣椒 = chili pepper; 甜椒 = bell pepper; 茄子 =
eggplant; 白菜 = chinese cabbage; 甘蓝 = cabbage; 茶 = tea; 咖啡 = coffee; 可可 = cacao; 花生 =
peanut; 油菜 = rapeseed; 甘蔗 = sugarcane; 木薯 = cassava; 高粱 = sorghum; 向日葵 = sunflower;
蓝莓 = blueberry; 树莓 = raspberry; 荔枝 = lychee; 健康 正常 = healthy; 炭疽病 炭疽 = anthracnose;
白粉病 = powdery mildew; 霜霉病 = downy mildew; 早疫病 = early blight; 晚疫病 = late blight;
灰霉病 = gray mold; 叶霉病 = leaf mold; 黑星病 疮痂病 = scab; 锈病 = rust; 条锈病 = stripe rust;
叶锈病 = leaf rust; 黑腐病 = black rot; 轮纹病 = ring rot; 斑点落叶病 = alternaria leaf spot;
褐斑病 = brown spot; 灰斑病 = gray leaf spot; 叶斑病 = leaf spot; 大斑病 = northern leaf blight;
小斑病 = southern leaf blight; 斑枯病 = septoria leaf spot; 细菌性斑点病 = bacterial spot;
白叶枯病 = bacterial blight; 稻瘟病 = blast; 纹枯病 = sheath blight; 稻曲病 = false smut; 赤霉病 =
head blight; 黑穗病 = smut; 花叶病毒病 花叶病 = mosaic virus; 黄化曲叶病毒病 = yellow leaf curl
virus; 卷叶病 = leaf curl; 枯萎病 = fusarium wilt; 青枯病 = bacterial wilt; 黄龙病 =
huanglongbing; 溃疡病 = canker; 红蜘蛛 = spider mite; 蚜虫 = aphid; 白粉虱 = whitefly; 草地贪夜蛾
= fall armyworm; 潜叶蛾 = leaf miner; 缺氮 = nitrogen deficiency; 缺钾 = potassium deficiency;
叶片 叶子 叶 = leaf; 病害 病 = disease
"""
# Spanish, Portuguese, Indonesian, Hindi.
_LATIN = """
hoja sana, hojas sanas, folha saudavel, folha sadia, daun sehat, swasth = healthy; tizon temprano,
requeima precoce, pinta preta = early blight; tizon tardio, requeima = late blight; roya,
ferrugem, karat = rust; roya de la hoja, roya foliar, ferrugem da folha, karat daun = leaf rust;
roya amarilla, ferrugem amarela, karat kuning = yellow rust; antracnosis, antracnose, antraknosa,
antraknose = anthracnose; mancha foliar, mancha de la hoja, mancha na folha, mancha da folha,
bercak daun = leaf spot; mancha marron, mancha parda, bercak coklat = brown spot; mancha gris,
mancha cinzenta, bercak abu abu = gray leaf spot; mancha bacteriana, bercak bakteri = bacterial
spot; mancha angular = angular leaf spot; hawar daun, tizon foliar = leaf blight; hawar daun
bakteri, hawar bakteri, kresek = bacterial leaf blight; hawar pelepah = sheath blight; mildiu
velloso, mildio, mildiu, bulai, embun bulu = downy mildew; oidio, mildiu polvoriento, embun tepung
= powdery mildew; mosaico = mosaic; virus mosaico, virus del mosaico, virus do mosaico, virus
mosaik = mosaic virus; marchitez, murcha, layu = wilt; marchitez bacteriana, murcha bacteriana,
layu bakteri = bacterial wilt; layu fusarium = fusarium wilt; pudricion, podredumbre, podridao,
busuk = rot; pudricion negra, podridao negra, busuk hitam = black rot; moho gris, mofo cinzento =
gray mold; sarna, kudis = scab; carvao = smut; cancro, chancro, kanker = canker; minador de la
hoja, bicho mineiro, minador = leaf miner; arana roja, acaro rajado, tungau = spider mite; pulgon,
pulgao, kutu daun = aphid; mosca blanca, mosca branca, kutu kebul, kutu putih = whitefly; gusano
cogollero, lagarta do cartucho, ulat grayak = fall armyworm; enrollamiento de la hoja, keriting
daun, daun keriting = leaf curl; brusone, blas = blast; sigatoka negra = black sigatoka; sigatoka
amarela, sigatoka amarilla = yellow sigatoka; jhulsa, jhulsa rog = blight; rog, penyakit,
enfermedad, doenca = disease; patti, daun, hoja, hojas, folha, folhas = leaf
"""


def _table(text: str, split: str) -> dict[str, str]:
    table = {}
    for entry in text.split(";"):
        phrases, _, english = entry.partition("=")
        for phrase in filter(None, (" ".join(p.split()) for p in re.split(split, phrases))):
            table[phrase] = " ".join(english.split())
    return table


_ENGLISH = {**_table(_CHINESE, r"\s"), **_table(_LATIN, ",")}
_LONGEST_FIRST = sorted(_ENGLISH, key=len, reverse=True)
_FIND = re.compile(
    "|".join(
        r"(?<![^\W_])" + p.replace(" ", r"[\s_-]+") + r"(?![^\W_])" if p.isascii() else p
        for p in _LONGEST_FIRST
    ),
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=100_000)
def in_english(text: str) -> str:
    """A name with the phrases of the table in English: "bercak-daun" -> "leaf spot".

    Accents of the phrases are folded first where one is found; other text stays as it is.
    """
    folded = unicodedata.normalize("NFKD", text)
    folded = "".join(c for c in folded if not unicodedata.combining(c))

    def english(match: re.Match[str]) -> str:
        words = " ".join(re.split(r"[\s_-]+", match[0].lower()))
        return f" {_ENGLISH[words]} "

    translated = _FIND.sub(english, folded)
    return translated if translated != folded else text
