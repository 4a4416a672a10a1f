"""Draw the bundled glyph images, and those for pre-training, from Debian font packages.

    python scripts/make_glyphs.py --help
    apt-get install --no-install-recommends $(python scripts/make_glyphs.py --packages)
    python scripts/make_glyphs.py --what split domains       # the bundled .npz files, 2 minutes
    python scripts/make_glyphs.py --what pretrain            # build/glyphs.npz, 3 minutes

Three sets, from fonts and scripts that do not overlap:

- `pretrain` (not bundled): a clean 40x40 image of each glyph in each font, for thousands of classes
  of non-Latin scripts, and synthetic grey silhouettes. Distortion is left to `pretrain.py`, which
  draws it anew at every step.
- `split`: `split_glyphs.npz`, 10 tasks of 10 classes; task t is one script, classes 10t .. 10t+9.
  None of its classes and scripts is in `pretrain`, and pre-training, training part and test part
  have no font family in common.
- `domains`: `glyph_domains.npz`, 20 of those classes in 5 rendering styles.

The same fonts and seed give the same bytes.
"""

from __future__ import annotations

import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from fontTools.ttLib import TTCollection, TTFont
from make_fashion_mnist import BUNDLED, write_npz
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Grey = NDArray[np.uint8]
What = Literal["pretrain", "split", "domains"]

BUILD = Path(__file__).resolve().parents[1] / "build"
BASE = 40
"""Side of a pre-training image. The margin leaves room for the affine maps of `pretrain.py`."""
SIDE = 32
"""Side of a bundled image."""
SMALLEST_GLYPH = 4
"""Pixels; a glyph that is drawn smaller counts as blank."""
LEAST_INK = 40 * 255
"""Sum of the values of a glyph's pixels, below which it counts as blank: 40 white pixels."""

# Package -> patterns below the fonts folder. Pre-training: fonts that hold East Asian, Ethiopic,
# Devanagari or Bengali letters.
PRETRAIN_FONTS: dict[str, tuple[str, ...]] = {
    "fonts-noto-cjk": ("opentype/noto/*CJK-Regular.ttc", "opentype/noto/*CJK-Bold.ttc"),
    "fonts-noto-cjk-extra": ("opentype/noto/*CJK-Black.ttc", "opentype/noto/*CJK-*Light.ttc"),
    "fonts-nanum": ("truetype/nanum/*.ttf",),
    "fonts-nanum-extra": ("truetype/nanum/Nanum*.ttf",),
    "fonts-unfonts-core": ("truetype/unfonts-core/*.ttf",),
    "fonts-unfonts-extra": ("truetype/unfonts-extra/*.ttf",),
    "fonts-baekmuk": ("truetype/baekmuk/*.ttf",),
    "fonts-alee": ("truetype/alee/*.ttf",),
    "fonts-woowa-bm": ("truetype/woowa-bm/*.ttf",),
    "fonts-arphic-ukai": ("truetype/arphic/ukai.ttc",),
    "fonts-arphic-uming": ("truetype/arphic/uming.ttc",),
    "fonts-arphic-gbsn00lp": ("truetype/arphic-gbsn00lp/*.ttf",),
    "fonts-arphic-gkai00mp": ("truetype/arphic-gkai00mp/*.ttf",),
    "fonts-wqy-zenhei": ("truetype/wqy/wqy-zenhei.ttc",),
    "fonts-wqy-microhei": ("truetype/wqy/wqy-microhei.ttc",),
    "fonts-ipafont-gothic": ("opentype/ipafont-gothic/ipag.ttf",),
    "fonts-ipafont-mincho": ("opentype/ipafont-mincho/ipam.ttf",),
    "fonts-vlgothic": ("truetype/vlgothic/VL-Gothic-Regular.ttf",),
    "fonts-motoya-l-maruberi": ("truetype/motoya-l-maruberi/*.ttf",),
    "fonts-komatuna": ("truetype/komatuna/komatuna.ttf",),
    "fonts-mplus": ("opentype/mplus/Mplus?-*.otf",),
    "fonts-hanazono": ("truetype/hanazono/HanaMinA.ttf",),
    "fonts-cwtex-kai": ("truetype/cwtex/cwkai.ttf",),
    "fonts-cwtex-yen": ("truetype/cwtex/cwyen.ttf",),
    "fonts-cwtex-heib": ("truetype/cwtex/cwheib.ttf",),
    "fonts-horai-umefont": ("truetype/horai-umefont/ume-[ht]?[os][34].ttf",),
    "fonts-kouzan-mouhitsu": ("truetype/kouzan-mouhitsu/*.*",),
    "fonts-aoyagi-kouzan-t": ("truetype/aoyagi-kouzan-t/*.*",),
    "fonts-aoyagi-soseki": ("truetype/aoyagi-soseki/*.*",),
    "fonts-kiloji": ("truetype/kiloji/*.ttf",),
    "fonts-seto": ("truetype/seto/setofont.ttf",),
    "fonts-klee": ("truetype/klee/*.ttf",),
    "fonts-sawarabi-gothic": ("truetype/sawarabi-gothic/*.ttf",),
    "fonts-sawarabi-mincho": ("truetype/sawarabi-mincho/*.*",),
    "fonts-dotgothic16": ("truetype/dotgothic16/*.ttf",),
    "fonts-yusei-magic": ("truetype/yusei-magic/*.ttf",),
    "fonts-rampart": ("truetype/rampart/*.ttf",),
    "fonts-reggae": ("truetype/reggae/*.ttf",),
    "fonts-rocknroll": ("truetype/rocknroll/*.ttf",),
    "fonts-stick": ("truetype/stick/*.ttf",),
    "fonts-yozvox-yozfont-antique": ("truetype/yozvox-yozfont/YOz[BR]A_.ttf",),
    "fonts-yozvox-yozfont-cute": ("truetype/yozvox-yozfont/YOz[BR]C_.ttf",),
    "fonts-morisawa-bizud-gothic": ("truetype/bizud-gothic/BIZUDGothic*.ttf",),
    "fonts-morisawa-bizud-mincho": ("truetype/bizud-mincho/BIZUDMincho*.ttf",),
    "fonts-lxgw-wenkai": ("truetype/lxgw-wenkai/LXGWWenKai-*.ttf",),
    "fonts-smiley-sans": ("truetype/smiley-sans/*.ttf",),
    "fonts-konatu": ("truetype/konatu/Konatu.ttf",),
    "fonts-dejima-mincho": ("truetype/dejima-mincho/*.ttf",),
    "fonts-sil-abyssinica": ("truetype/abyssinica/*.ttf",),
    "fonts-sil-nuosusil": ("truetype/nuosusil/*.ttf",),
    "fonts-senamirmir-washra": ("truetype/fonts-senamirmir-washra/*.ttf",),
    "fonts-deva-extra": ("truetype/fonts-deva-extra/*.ttf",),
    "fonts-gargi": ("truetype/Gargi/*.ttf",),
    "fonts-lohit-deva": ("truetype/lohit-devanagari/*.ttf",),
    "fonts-nakula": ("truetype/Nakula/*.ttf",),
    "fonts-sahadeva": ("truetype/Sahadeva/*.ttf",),
    "fonts-samyak-deva": ("truetype/samyak/*.ttf",),
    "fonts-sarai": ("truetype/Sarai/*.ttf",),
    "fonts-beng-extra": ("truetype/fonts-beng-extra/*.ttf",),
    "fonts-lohit-beng-bengali": ("truetype/lohit-bengali/*.ttf",),
}
# Scripts of which Noto has the only fonts; none looks like a script of `STREAM`.
_NOTO_SCRIPTS = (
    "Devanagari Bengali Ethiopic Gujarati Gurmukhi Kannada Telugu Oriya Sinhala Myanmar Khmer "
    "Tibetan Balinese Javanese Bamum Vai MendeKikakui Cuneiform EgyptianHieroglyphs "
    "AnatolianHieroglyphs LinearA LinearB Cypriot Brahmi Chakma Cham Bhaiksuki Newa Modi Kaithi "
    "Khojki Khudawadi Lepcha Limbu MasaramGondi GunjalaGondi Marchen MeeteiMayek Nushu OlChiki "
    "PahawhHmong PhagsPa Sharada Siddham Soyombo SylotiNagri TaiTham Takri Tirhuta "
    "ZanabazarSquare Yi Mongolian Tangut Dogra Ahom Saurashtra Sundanese Batak Buginese Rejang "
    "Kharoshthi Ugaritic OldPersian Glagolitic Meroitic Mahajani"
)
NOTO_SCRIPTS = _NOTO_SCRIPTS.split()
NOTO_STYLES = (
    "Regular",
    "Bold",
    "Thin",
    "Black",
    "Medium",
    "Condensed",
    "ExtraCondensedLight",
    "CondensedBold",
)

# The stream: task name, its ten characters (no look-alikes across tasks), fonts.
STREAM: tuple[tuple[str, str], ...] = (
    ("digit", "0123456789"),
    ("Latin", "AEFGHKMQRW"),
    ("Greek", "ΓΔΘΛΞΠΣΦΨΩ"),
    ("Cyrillic", "БДЖИЦЧШЭЮЯ"),
    ("Georgian", "აბდლმრფქყჯ"),
    ("Armenian", "ԱԲԴԺԽԾՁՃՇՔ"),
    ("Hebrew", "אבהטלמעפצש"),
    ("Arabic", "بجسصطعفكمي"),
    ("Thai", "กขงจฉธมรฬฮ"),
    ("Tamil", "அஇஎஒகசஞணமழ"),
)
STREAM_FONTS: dict[str, tuple[str, ...]] = {
    "culmus": ("truetype/culmus/*.ttf",),
    "fonts-bpg-georgian": ("truetype/fonts-bpg-georgian/*.ttf",),
    "fonts-dejavu-core": ("truetype/dejavu/*.ttf",),
    "fonts-freefont-ttf": ("truetype/freefont/*.ttf",),
    "fonts-linuxlibertine": ("opentype/linux-libertine/*_R.otf", "opentype/linux-libertine/*B.otf"),
    "fonts-hosny-amiri": ("opentype/fonts-hosny-amiri/Amiri-*.ttf",),
    "fonts-hosny-thabit": ("opentype/fonts-hosny-thabit/*.ttf",),
    "fonts-arabeyes": ("truetype/fonts-arabeyes/*.ttf",),
    "fonts-kacst": ("truetype/kacst/*.ttf",),
    "fonts-farsiweb": ("truetype/farsiweb/*.ttf",),
    "fonts-sil-scheherazade": ("truetype/scheherazade/*.ttf",),
    "fonts-sil-lateef": ("opentype/lateef/*.ttf",),
    "fonts-sil-harmattan": ("truetype/harmattan/*.ttf",),
    "fonts-tlwg-garuda-ttf": ("truetype/tlwg/Garuda*.ttf",),
    "fonts-tlwg-kinnari-ttf": ("truetype/tlwg/Kinnari*.ttf",),
    "fonts-tlwg-laksaman-ttf": ("truetype/tlwg/Laksaman*.ttf",),
    "fonts-tlwg-loma-ttf": ("truetype/tlwg/Loma*.ttf",),
    "fonts-tlwg-mono-ttf": ("truetype/tlwg/TlwgMono*.ttf",),
    "fonts-tlwg-norasi-ttf": ("truetype/tlwg/Norasi*.ttf",),
    "fonts-tlwg-purisa-ttf": ("truetype/tlwg/Purisa*.ttf",),
    "fonts-tlwg-sawasdee-ttf": ("truetype/tlwg/Sawasdee*.ttf",),
    "fonts-tlwg-typist-ttf": ("truetype/tlwg/TlwgTypist*.ttf",),
    "fonts-tlwg-umpush-ttf": ("truetype/tlwg/Umpush*.ttf",),
    "fonts-tlwg-waree-ttf": ("truetype/tlwg/Waree*.ttf",),
    "fonts-taml-tscu": ("truetype/fonts-taml-tscu/*.ttf",),
    "fonts-lohit-taml": ("truetype/lohit-tamil/*.ttf",),
    "fonts-samyak-taml": ("truetype/samyak-fonts/*.ttf",),
    "fonts-meera-inimai": ("truetype/fonts-meera-inimai/*.ttf",),
    "fonts-gfs-artemisia": ("opentype/artemisia/*.otf",),
    "fonts-gfs-baskerville": ("truetype/baskerville/*.*",),
    "fonts-gfs-didot": ("opentype/didot/*.otf",),
    "fonts-gfs-neohellenic": ("opentype/neohellenic/*.otf",),
    "fonts-gfs-theokritos": ("opentype/theokritos/*.otf",),
    "fonts-paratype": ("truetype/paratype/*.ttf",),
    "fonts-roboto-unhinted": ("truetype/roboto/unhinted/RobotoTTF/*.ttf",),
    "fonts-open-sans": ("truetype/open-sans/*.ttf",),
    "fonts-ebgaramond": ("opentype/ebgaramond/*.otf",),
    "fonts-comfortaa": ("truetype/comfortaa/*.ttf",),
    "fonts-cmu": ("truetype/cmu/*.ttf",),
    "fonts-oldstandard": ("truetype/fonts-oldstandard/*.ttf",),
    "fonts-vollkorn": ("truetype/vollkorn/*.ttf",),
    "fonts-lato": ("truetype/lato/*.ttf",),
    "fonts-dosis": ("opentype/dosis/*.otf",),
    "fonts-lobster": ("opentype/lobster/*.otf",),
    "fonts-averia-serif-gwf": ("truetype/averia-gwf/AveriaSerif*.ttf",),
    "fonts-play": ("truetype/play/*.ttf",),
    "fonts-junicode": ("opentype/junicode/*.otf",),
    "fonts-adf-mekanus": ("truetype/adf/Mekanus*.otf",),
    "fonts-b612": ("opentype/b612/*.otf",),
    "fonts-fantasque-sans": ("truetype/fantasque-sans/Normal/TTF/*.ttf",),
    "fonts-inter": ("opentype/inter/Inter-*.otf",),
    "fonts-sil-gentiumplus": ("truetype/gentiumplus/GentiumPlus-*.ttf",),
    "fonts-sil-andika": ("truetype/andika/*.ttf",),
    "fonts-courier-prime": ("opentype/courier-prime/*.otf",),
    "fonts-comic-neue": ("opentype/comic-neue/*.otf",),
    "fonts-tuffy": ("truetype/tuffy/*.ttf",),
    "fonts-yanone-kaffeesatz": ("opentype/yanone-kaffeesatz/*.otf",),
    "fonts-crosextra-caladea": ("truetype/crosextra/Caladea*.ttf",),
    "fonts-opendyslexic": ("opentype/opendyslexic/*.otf",),
}
STREAM_NOTO = ("Armenian", "Hebrew", "Thai", "Tamil", "Georgian", "Arabic")
# Families (by the beginning of their name) that are drawn for the test part only. `Noto Serif`
# and `Free...` are in the test part for every script, or one design would be on both sides.
_TEST_FAMILIES = (
    "noto serif|freesans|freeserif|freemono|david|hadasim|nachlieli|stam|bpg nino|bpg sans|"
    "bpg glaho|bpg courier|bpg algeti|amiri|kacst|lateef|sharjah|arab|homa|salem|garuda|norasi|"
    "purisa|waree|tlwg typist|tscu_paranar|meera|gfs neohellenic|gfs didot|pt serif|open sans|"
    "eb garamond|cmu serif|cmu concrete|lato|averia|andika|comic neue|caladea|dosis|play"
)
TEST_FAMILIES = tuple(_TEST_FAMILIES.split("|"))
SKIP_FAMILIES = (
    "bpg mrgvlovani",
    "bpg dedaena",
    "bpg excelsior caps",
    "bpg nateli caps",
    "amiri quran",
)

DOMAINS = ("print", "outline", "inverted", "handwritten", "noisy")


class MissingFonts(Exception):
    """Fonts that are needed are not installed; the message names their package."""


@dataclass(frozen=True)
class Config:
    """Draw glyph images from the fonts of Debian packages."""

    what: tuple[What, ...] = ("split", "domains")
    """Which sets to draw."""
    fonts: Path = Path("/usr/share/fonts")
    """Folder into which packages install fonts."""
    bundled: Path = BUNDLED
    """Folder for split_glyphs.npz and glyph_domains.npz."""
    out: Path = BUILD / "glyphs.npz"
    """File for the pre-training set."""
    seed: int = 0
    """Seed of all choices and distortions."""
    train_per_class: int = 100
    """Number of training images of each class of split-glyphs."""
    test_per_class: int = 30
    """Number of test images of each class of split-glyphs."""
    fonts_per_class: int = 40
    """Most fonts of a pre-training class."""
    packages: bool = False
    """Only print the names of the Debian packages that are needed."""


@dataclass(frozen=True)
class Font:
    """A font file: the characters that it has, and grey bitmaps of its glyphs."""

    path: Path

    @cached_property
    def table(self) -> TTFont:
        if self.path.suffix == ".ttc":
            return TTCollection(self.path, lazy=True).fonts[0]
        return TTFont(self.path, lazy=True)

    @cached_property
    def family(self) -> str:
        names = self.table["name"]
        typographic_family = names.getDebugName(16)
        return str(typographic_family or names.getDebugName(1)).strip().lower()

    @cached_property
    def covered(self) -> frozenset[int]:
        return frozenset(self.table.getBestCmap() or ())

    @cached_property
    def face(self) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(str(self.path), 80, layout_engine=ImageFont.Layout.BASIC)

    @cached_property
    def tofu(self) -> bytes:
        """The bitmap of the glyph for characters that the font does not have."""
        # The character is a noncharacter, which no font has.
        return self.bitmap("\U0010fffe")[1]

    def bitmap(self, character: str) -> tuple[tuple[int, int], bytes]:
        mask: Any = self.face.getmask(character)
        return mask.size, bytes(mask)

    def draw(self, character: str) -> Image.Image | None:
        """The glyph's bitmap; None if the font has none, a blank, or its glyph for missing ones."""
        if ord(character) not in self.covered:
            return None
        size, data = self.bitmap(character)
        is_blank = min(size) < SMALLEST_GLYPH or sum(data) < LEAST_INK
        if is_blank or data == self.tofu:
            return None
        return crop(Image.frombytes("L", size, data))


def crop(image: Image.Image) -> Image.Image:
    return image.crop(image.getbbox())


def find_fonts(root: Path, table: dict[str, tuple[str, ...]]) -> list[Font]:
    """The files of a table of patterns, each once, in the order of the table."""
    found: dict[Path, None] = {}
    for package, patterns in table.items():
        for pattern in patterns:
            files = sorted(root.glob(pattern))
            if not files:
                raise MissingFonts(f"no font {root / pattern}: apt-get install {package}")
            found.update(dict.fromkeys(files))
    return [Font(path) for path in found if path.suffix.lower() in (".ttf", ".otf", ".ttc")]


def noto_fonts(root: Path, scripts: Iterable[str]) -> list[Font]:
    """The styles `NOTO_STYLES` of Noto Sans and Noto Serif for each script."""
    folder = root / "truetype" / "noto"
    fonts = []
    for script in scripts:
        names = [f"Noto{kind}{script}-{s}.ttf" for kind in ("Sans", "Serif") for s in NOTO_STYLES]
        files = [folder / name for name in names if (folder / name).exists()]
        if not files:
            packages = "fonts-noto-core fonts-noto-extra"
            raise MissingFonts(f"no Noto font of {script}: apt-get install {packages}")
        fonts += [Font(path) for path in files]
    return fonts


def centred(glyph: Image.Image, side: int, longest: float) -> Grey:
    """Scale the glyph's longer side to `longest` and put it in the middle of a square."""
    scale = longest / max(glyph.size)
    size = [max(1, round(length * scale)) for length in glyph.size]
    canvas = Image.new("L", (side, side))
    small = glyph.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    canvas.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(canvas)


# --- pre-training -------------------------------------------------------------------------------


def jis_kanji() -> list[str]:
    """The 2,965 Han characters of JIS level 1, which most fonts have."""
    rows = [bytes([row + 160, cell + 160]) for row in range(16, 48) for cell in range(1, 95)]
    return [c for c in (code.decode("euc_jp", "ignore") for code in rows) if c]


def ksx_hangul() -> list[str]:
    """The 2,350 syllables of KS X 1001."""
    rows = [bytes([row + 160, cell + 160]) for row in range(16, 41) for cell in range(1, 95)]
    return [c for c in (code.decode("euc_kr", "ignore") for code in rows) if c]


def letters(first: int, last: int) -> list[str]:
    """The letters without upper and lower case in a range of code points."""
    return [chr(c) for c in range(first, last + 1) if unicodedata.category(chr(c)) == "Lo"]


def thin(characters: Sequence[str], count: int) -> list[str]:
    """At most `count` of the characters, evenly spaced."""
    step = max(1.0, len(characters) / count)
    return [characters[int(i * step)] for i in range(min(count, len(characters)))]


def main_characters() -> list[str]:
    """The characters of scripts for which many fonts exist."""
    kana = letters(0x3042, 0x30F3)
    ethiopic = letters(0x1200, 0x135A)
    devanagari = letters(0x905, 0x939)
    bengali = letters(0x985, 0x9B9)
    han = thin(jis_kanji(), 1500)
    hangul = thin(ksx_hangul(), 700)
    return han + hangul + kana + ethiopic + devanagari + bengali


def noto_characters(font: Font) -> list[str]:
    """The letters of a font's own script, without the Latin and Greek ones that it also has."""
    own = [chr(c) for c in sorted(font.covered) if c >= 0x0A00 and not 0x2000 <= c < 0x2E00]
    return thin([c for c in own if unicodedata.category(c) == "Lo"], 220)


def assign(config: Config) -> dict[Font, list[str]]:
    """Choose the characters to draw from each font: at most `fonts_per_class` fonts a character."""
    rng = np.random.default_rng(config.seed)
    main_fonts = find_fonts(config.fonts, PRETRAIN_FONTS)
    only_noto = noto_fonts(config.fonts, NOTO_SCRIPTS)
    characters = dict.fromkeys(main_characters())
    for font in only_noto:
        characters.update(dict.fromkeys(noto_characters(font)))
    fonts_of = fonts_by_character(main_fonts + only_noto, characters)
    plan: dict[Font, list[str]] = defaultdict(list)
    for character, fonts in fonts_of.items():
        for i in sorted(rng.permutation(len(fonts))[: config.fonts_per_class]):
            plan[fonts[i]].append(character)
    return plan


def fonts_by_character(fonts: Sequence[Font], characters: Iterable[str]) -> dict[str, list[Font]]:
    """The fonts that have each character."""
    return {c: [font for font in fonts if ord(c) in font.covered] for c in characters}


def filled(image: Grey) -> Grey:
    """A glyph on its grey silhouette, because photographs have areas and not only lines."""
    closed = ndimage.binary_closing(np.pad(image, 6) > 100, iterations=4)
    body: NDArray = np.asarray(ndimage.binary_fill_holes(closed))[6:-6, 6:-6]
    soft = ndimage.gaussian_filter(body.astype(np.float32), 0.5) * 150
    return np.maximum(soft, image).astype(np.uint8)


def draw_plan(plan: dict[Font, list[str]]) -> Iterator[tuple[str, Grey]]:
    """Draw the planned characters of each font."""
    for font, characters in plan.items():
        for character in characters:
            glyph = font.draw(character)
            if glyph is not None:
                yield character, centred(glyph, BASE, 33)


def distinct(drawn: Iterable[tuple[str, Grey]]) -> dict[str, list[Grey]]:
    """The different images of each class; many fonts share their outlines."""
    images: dict[str, dict[bytes, Grey]] = defaultdict(dict)
    for name, image in drawn:
        images[name].setdefault(image.tobytes(), image)
    return {name: list(unique.values()) for name, unique in images.items()}


def blob(rng: np.random.Generator) -> Callable[[np.random.Generator], Grey]:
    """A class of silhouettes of a few grey, mostly mirrored parts.

    Each call of the result draws one, with other jitter of its outlines.
    """
    parts = int(rng.integers(2, 6))
    mirrored = rng.random() < 0.7
    outlines = [outline(rng, mirrored) for _ in range(parts)]
    greys = rng.uniform(70, 255, parts)

    def draw(jitter: np.random.Generator) -> Grey:
        canvas = Image.new("L", (160, 160))
        pen = ImageDraw.Draw(canvas)
        for points, grey in zip(outlines, greys, strict=True):
            moved = points + jitter.normal(0, 2.5, points.shape)
            shade = int(np.clip(grey + jitter.normal(0, 15), 40, 255))
            pen.polygon([(float(x), float(y)) for x, y in moved], fill=shade)
        return centred(crop(canvas), BASE, 33)

    return draw


def outline(rng: np.random.Generator, mirrored: bool) -> NDArray[np.float64]:
    """A star-shaped polygon around a random centre, or its union with its mirror image."""
    corners = int(rng.choice([3, 4, 5, 6, 8, 20]))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(0.5, 1.0, corners) * rng.uniform(12, 60)
    stretch = rng.uniform(0.4, 1.0, 2)
    middle = np.array([80.0 if mirrored else rng.uniform(45, 115), rng.uniform(40, 120)])
    points = middle + stretch * np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    if not mirrored:
        return points
    middle_line = np.array([80.0, 0.0])
    right = np.abs(points - middle_line)
    right = right[np.argsort(right[:, 1])]
    return np.concatenate([middle_line + right, middle_line + right[::-1] * [-1, 1]])


def blobs(seed: int, classes: int = 500, images: int = 16) -> dict[str, list[Grey]]:
    """Classes of silhouettes: filled and shaded shapes, unlike letters."""
    found = {}
    for i in range(classes):
        rng = np.random.default_rng((seed, 1, i))
        draw = blob(rng)
        found[f"blob{i}"] = [draw(rng) for _ in range(images)]
    return found


def pretrain_set(config: Config) -> None:
    """Write the images for pre-training."""
    rng = np.random.default_rng((config.seed, 2))
    classes = {n: v for n, v in distinct(draw_plan(assign(config))).items() if len(v) >= 1}
    # Rare glyphs are repeated, so that they are shown as often as those of eight fonts; distortion
    # makes the copies differ.
    classes = {name: (v * 8)[: max(8, len(v))] for name, v in classes.items()}
    classes = {n: [filled(x) if rng.random() < 0.15 else x for x in v] for n, v in classes.items()}
    classes |= blobs(config.seed)
    names = sorted(classes)
    images = np.stack([image for name in names for image in classes[name]])
    labels = np.repeat(np.arange(len(names)), [len(classes[name]) for name in names])
    arrays = {"images": images, "labels": labels.astype(np.int64), "class_names": np.array(names)}
    write_npz(config.out, arrays)
    print(f"{config.out}: {len(images)} images of {len(names)} classes")


# --- bundled: a stream of scripts, and the same letters in five styles ---------------------------


def is_test(font: Font) -> bool:
    """Whether a font is used for the test parts."""
    return font.family.startswith(TEST_FAMILIES)


def stream_fonts(root: Path) -> list[Font]:
    """The fonts of the bundled sets."""
    fonts = find_fonts(root, STREAM_FONTS) + noto_fonts(root, STREAM_NOTO)
    return [font for font in fonts if not font.family.startswith(SKIP_FAMILIES)]


Drawings = dict[str, list[Image.Image]]
"""Bitmaps of a class, by font family."""


def drawings(fonts: Sequence[Font], character: str, test: bool) -> Drawings:
    """Draw a character in all fonts of a part."""
    found: Drawings = defaultdict(list)
    for font in fonts:
        glyph = font.draw(character) if is_test(font) == test else None
        if glyph is not None:
            found[font.family].append(glyph)
    return found


def pick(found: Drawings, rng: np.random.Generator, count: int) -> Iterator[tuple[str, Grey]]:
    """Choose `count` drawings at twice the final size, from all families in turn."""
    families = rng.permutation(sorted(found))
    for i in range(count):
        family = families[i % len(families)]
        glyph = found[family][rng.integers(len(found[family]))]
        yield str(family), centred(glyph, 2 * SIDE, rng.uniform(52, 60))


def warp(image: Grey, rng: np.random.Generator, bend: float, tilt: float = 0.2) -> NDArray:
    """Distort an image by a random affine map and a smooth displacement, and halve its size.

    Args:
        image: At twice the final size.
        rng: For the distortion.
        bend: Standard deviation of the displacement, in pixels of the result.
        tilt: Twice the standard deviation of the entries of the affine map.

    Returns:
        The image, in [0, 1].
    """
    side = image.shape[0]
    matrix = np.eye(2) + rng.normal(0, tilt / 2, (2, 2))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")).astype(float)
    centre = (side - 1) / 2
    moved = np.tensordot(matrix, grid - centre, 1) + centre + rng.normal(0, 2.0, (2, 1, 1))
    coarse = rng.normal(0, 2 * bend, (2, 6, 6))
    moved += np.stack([np.asarray(ndimage.zoom(c, side / 6, order=3)) for c in coarse])
    drawn = ndimage.map_coordinates(image.astype(np.float32), moved, order=1)
    return drawn.reshape(SIDE, 2, SIDE, 2).mean((1, 3)) / 255


def slope(rng: np.random.Generator) -> NDArray:
    """A linear ramp from 0 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, SIDE)
    ramp = np.cos(angle) * axis[:, None] + np.sin(angle) * axis[None]
    return (ramp - ramp.min()) / (ramp.max() - ramp.min())


def quantise(image: NDArray, levels: int = 16) -> Grey:
    """Reduce an image in [0, 1] to a few grey levels, which halves its bytes in the file."""
    steps = np.round(np.clip(image, 0, 1) * (levels - 1))
    return np.round(steps * 255 / (levels - 1)).astype(np.uint8)


def paint(ink: NDArray, paper: NDArray | float, colour: NDArray | float) -> NDArray:
    """Blend colour onto paper, by the amount of ink of each pixel."""
    return paper * (1 - ink) + colour * ink


def stroke(ink: NDArray, rng: np.random.Generator) -> NDArray:
    """Make strokes thicker or thinner by up to half a pixel."""
    amount = rng.uniform(-0.5, 0.5)
    other = ndimage.grey_dilation(ink, (3, 3)) if amount > 0 else ndimage.grey_erosion(ink, (3, 3))
    return (1 - abs(amount)) * ink + abs(amount) * other


def split_style(image: Grey, rng: np.random.Generator) -> Grey:
    """The style of split-glyphs: mildly bent, bright on a dark ramp or the reverse."""
    ink = stroke(warp(image, rng, bend=0.8, tilt=0.12), rng)
    dark = rng.uniform(0, 0.25) + rng.uniform(0, 0.3) * slope(rng)
    drawn = paint(ink, dark, dark + (1 - dark) * rng.uniform(0.55, 1.0))
    return quantise(drawn if rng.random() < 0.7 else 1 - drawn)


def printed(image: Grey, rng: np.random.Generator) -> Grey:
    """Black on white, and straight."""
    return quantise(1 - warp(image, rng, bend=0, tilt=0.06))


def outlined(image: Grey, rng: np.random.Generator) -> Grey:
    """Only the outlines, bright on black."""
    ink = warp(image, rng, bend=0.5, tilt=0.15)
    edge = ndimage.grey_dilation(ink, (3, 3)) - ndimage.grey_erosion(ink, (2, 2))
    return quantise(np.clip(1.2 * edge, 0, 1))


def inverted(image: Grey, rng: np.random.Generator) -> Grey:
    """White on a background of dark waves."""
    ink = warp(image, rng, bend=0.5, tilt=0.15)
    waves = 0.5 + 0.5 * np.sin(slope(rng) * rng.uniform(15, 40) + rng.uniform(0, 6))
    return quantise(paint(ink, 0.45 * waves, 1.0), 12)


def handwritten(image: Grey, rng: np.random.Generator) -> Grey:
    """Strongly bent and soft, bright on black."""
    ink = ndimage.gaussian_filter(warp(image, rng, bend=1.7, tilt=0.3), 0.5)
    return quantise(np.clip(1.6 * ink - 0.1, 0, 1))


def noisy(image: Grey, rng: np.random.Generator) -> Grey:
    """Faint, with noise in a quarter of the pixels (noise in all of them would not compress)."""
    ink = warp(image, rng, bend=0.8, tilt=0.15)
    low = rng.uniform(0.25, 0.5)
    drawn = paint(ink, low, low + rng.choice([-0.25, 0.3]))
    hit = rng.random(drawn.shape) < 0.25
    return quantise(drawn + hit * rng.normal(0, 0.2, drawn.shape), 10)


STYLES = (printed, outlined, inverted, handwritten, noisy)


def class_name(task: str, character: str) -> str:
    return f"{task} {character}"


@dataclass
class Part:
    """The images of one part with their labels, in the order of drawing."""

    images: list[Grey] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    domains: list[int] = field(default_factory=list)
    families: list[str] = field(default_factory=list)

    def arrays(self, part: str, rng: np.random.Generator) -> dict[str, NDArray]:
        """The arrays in a random order, for readers of the file that do not shuffle."""
        order = rng.permutation(len(self.images))
        return {
            f"{part}_images": np.stack(self.images)[order],
            f"{part}_labels": np.array(self.labels, np.int64)[order],
        }


def stream_classes() -> list[tuple[str, str]]:
    """The task and the character of each class."""
    return [(task, character) for task, characters in STREAM for character in characters]


def split_part(fonts: Sequence[Font], config: Config, test: bool) -> Part:
    """Draw the training or the test part of split-glyphs."""
    part = Part()
    count = config.test_per_class if test else config.train_per_class
    for label, (task, character) in enumerate(stream_classes()):
        rng = np.random.default_rng((config.seed, 3, label, test))
        for family, image in pick(stock(fonts, task, character, test), rng, count):
            part.images.append(split_style(image, rng))
            part.labels.append(label)
            part.families.append(family)
    return part


def stock(fonts: Sequence[Font], task: str, character: str, test: bool) -> Drawings:
    """The drawings of a character, from at least three font families of its part."""
    found = drawings(fonts, character, test)
    if len(found) < 3:
        raise MissingFonts(
            f"{task} {character} has {len(found)} font families: install all of --packages"
        )
    return found


def split_set(config: Config) -> None:
    """Write split-glyphs."""
    fonts = stream_fonts(config.fonts)
    rng = np.random.default_rng((config.seed, 4))
    train = split_part(fonts, config, test=False)
    test = split_part(fonts, config, test=True)
    shared = set(train.families) & set(test.families)
    assert not shared, f"font families in both parts: {shared}"
    names = [class_name(*pair) for pair in stream_classes()]
    arrays = train.arrays("train", rng) | test.arrays("test", rng)
    write_npz(config.bundled / "split_glyphs.npz", arrays | {"class_names": np.array(names)})
    print(f"split_glyphs.npz: {len(train.images)} + {len(test.images)} images")


def domain_part(fonts: Sequence[Font], config: Config, test: bool) -> Part:
    """Draw the training or the test part of glyph-domains."""
    part = Part()
    count = 10 if test else 30
    for label, (task, character) in enumerate(stream_classes()[::5]):
        for domain, style in enumerate(STYLES):
            rng = np.random.default_rng((config.seed, 5, label, domain, test))
            for _, image in pick(stock(fonts, task, character, test), rng, count):
                part.images.append(style(image, rng))
                part.labels.append(label)
                part.domains.append(domain)
    return part


def domain_arrays(part: Part, name: str, seed: int) -> dict[str, NDArray]:
    """The arrays of a part with the domain of each image."""
    # The same seed again gives the order in which `arrays` has put the images.
    images = part.arrays(name, np.random.default_rng((seed, 6)))
    order = np.random.default_rng((seed, 6)).permutation(len(part.images))
    return images | {f"{name}_domains": np.array(part.domains, np.int64)[order]}


def domain_set(config: Config) -> None:
    """Write glyph-domains."""
    fonts = stream_fonts(config.fonts)
    train = domain_part(fonts, config, test=False)
    test = domain_part(fonts, config, test=True)
    arrays = domain_arrays(train, "train", config.seed) | domain_arrays(test, "test", config.seed)
    names = [class_name(*pair) for pair in stream_classes()[::5]]
    extra = {"class_names": np.array(names), "domain_names": np.array(DOMAINS)}
    write_npz(config.bundled / "glyph_domains.npz", arrays | extra)
    print(f"glyph_domains.npz: {len(train.images)} + {len(test.images)} images")


MAKERS: dict[What, Callable[[Config], None]] = {
    "pretrain": pretrain_set,
    "split": split_set,
    "domains": domain_set,
}


def package_names() -> list[str]:
    noto = ["fonts-noto-core", "fonts-noto-extra"]
    return noto + list(PRETRAIN_FONTS) + list(STREAM_FONTS)


def main(config: Config) -> None:
    if config.packages:
        print(" ".join(package_names()))
        return
    for what in config.what:
        MAKERS[what](config)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except MissingFonts as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
