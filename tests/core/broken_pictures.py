"""Broken, lying and hostile picture files, built from code: (name, bytes), more than two hundred."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """A chunk of PNG; the check sum may be a lie."""
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png(
    width: int = 32,
    height: int = 32,
    depth: int = 8,
    colour: int = 2,
    *,
    before: bytes = b"",
    rows: bytes | None = None,
) -> bytes:
    """A PNG from its parts; `rows` are packed as given."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 3)
    if rows is None:
        rows = (b"\0" + b"\x55" * ((width * channels * depth + 7) // 8)) * height
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return SIGNATURE + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def photo(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """Coloured noise: it compresses badly, so that what is cut off is pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """What Pillow writes of a picture."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def exif(entries: list[tuple[int, int, int, bytes]], *, first: int = 8, count: int | None = None) -> bytes:
    """A little-endian TIFF directory: (tag, type, number of values, four bytes) each; `count` may be a lie."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    number = len(entries) if count is None else count
    return b"II*\0" + struct.pack("<I", first) + struct.pack("<H", number) + body + b"\0" * 4


def tiff(tags: dict[int, tuple[int, int]], pixels: bytes = b"", *, big: bool = False) -> bytes:
    """A TIFF with one directory; tags are {tag: (type, value)}, "pixels" begin at 1024."""
    base = {256: (4, 32), 257: (4, 32), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 1024), 277: (3, 1)}
    base |= {278: (4, 32), 279: (4, 1024)}
    entries = sorted((base | tags).items())
    if big:
        body = b"".join(struct.pack("<HHQQ", tag, kind, 1, value) for tag, (kind, value) in entries)
        head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + struct.pack("<Q", len(entries)) + body + b"\0" * 8
    else:
        body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in entries)
        head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + b"\0" * 4
    return head.ljust(1024, b"\0") + (pixels or b"\x55" * 1024)


def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """A WebP container; its size may be a lie."""
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4 if size is None else size) + b"WEBP" + body


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """WebP's extended header."""
    return b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def icc(size: int = 200, *, declared: int | None = None, tags: int = 0, space: bytes = b"RGB ") -> bytes:
    """A colour profile's header with nothing behind it."""
    head = struct.pack(">I", size if declared is None else declared) + b"\0" * 8 + b"mntr" + space + b"XYZ "
    return (head.ljust(36, b"\0") + b"acsp").ljust(128, b"\0") + struct.pack(">I", tags).ljust(size - 128, b"\0")


def _pngs() -> Iterator[tuple[str, bytes]]:
    whole = encoded(photo(), "PNG")
    for name, size in (
        ("100k square", (100_000, 100_000)), ("30k by 20", (30_000, 20)), ("2^31 - 1", (2**31 - 1, 2**31 - 1)),
        ("2^32 - 1", (2**32 - 1, 16)), ("no width", (0, 32)), ("no height", (32, 0)), ("one pixel", (1, 1)),
    ):  # fmt: skip
        yield f"png {name}.png", png(*size, rows=b"")
    yield "png bomb of 16384 x 16384.png", png(16_384, 16_384, 1, 0, rows=bytes(2**20))
    for depth, colour in ((3, 2), (8, 1), (8, 5), (16, 3), (32, 2), (0, 0), (255, 255)):
        yield f"png depth {depth} colour {colour}.png", png(depth=depth, colour=colour)
    yield "png palette missing.png", png(colour=3)
    yield "png palette of 4 bytes.png", png(colour=3, before=chunk(b"PLTE", b"abcd"))
    yield "png palette too long.png", png(colour=3, before=chunk(b"PLTE", b"abc" * 400))
    yield "png index outside the palette.png", png(colour=3, before=chunk(b"PLTE", b"abc"))
    yield "png interlace 7.png", SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 7)) + whole[33:]
    yield "png filter 9.png", png(rows=(b"\x09" + b"a" * 96) * 32)
    yield "png rows missing.png", png(rows=(b"\0" + b"a" * 96) * 3)
    yield "png rows too many.png", png(rows=(b"\0" + b"a" * 96) * 3200)
    yield "png pixels bomb.png", png(rows=bytes(16 * 2**20))
    yield "png stream is no zlib.png", whole[:33] + chunk(b"IDAT", b"no zlib at all") + chunk(b"IEND", b"")
    yield "png header check sum.png", whole[:29] + b"\0\0\0\0" + whole[33:]
    yield "png no pixels.png", whole[:33] + chunk(b"IEND", b"")
    yield "png header twice.png", whole[:33] + whole[8:]
    yield "png chunk of 4 GB.png", whole[:33] + b"\xff\xff\xff\xfftEXt" + whole[33:]
    yield "png chunk of 2 GB.png", whole[:33] + b"\x7f\xff\xff\xffIDAT" + whole[41:]
    yield "png 30000 empty chunks.png", whole[:33] + chunk(b"IDAT", b"") * 30_000 + whole[33:]
    yield "png unknown critical chunk.png", png(before=chunk(b"EVIL", b"x"))
    bomb = zlib.compress(bytes(20 * 2**20), 9)
    yield "png zTXt bomb.png", png(before=chunk(b"zTXt", b"a\0\0" + bomb))
    yield "png 70 zTXt bombs.png", png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20), 9)) * 70)
    yield "png iTXt bomb.png", png(before=chunk(b"iTXt", b"a\0\1\0\0\0" + bomb))
    yield "png iCCP bomb.png", png(before=chunk(b"iCCP", b"a\0\0" + bomb))
    yield "png iCCP is no zlib.png", png(before=chunk(b"iCCP", b"a\0\0no zlib"))
    yield "png iCCP empty.png", png(before=chunk(b"iCCP", b""))
    for name, profile in (("too short", b"RGB"), ("lies", icc(declared=2**32 - 1)), ("tags", icc(tags=2**31))):
        yield f"png iCCP {name}.png", png(before=chunk(b"iCCP", b"a\0\0" + zlib.compress(profile)))
    for name, body in (("tRNS", b""), ("pHYs", b"abc"), ("gAMA", b""), ("cHRM", b"1"), ("sRGB", b""), ("acTL", b"1")):
        yield f"png {name} damaged.png", png(before=chunk(name.encode(), body))
    yield "png animation of 2^31 frames.png", png(before=chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 9, 99, 99, 1, 1, 0, 0))
    yield "png frame outside.png", png(before=chunk(b"acTL", struct.pack(">II", 2, 0)) + frame)
    for name, blob in _exifs():
        yield f"png exif {name}.png", png(before=chunk(b"eXIf", blob))
    raw = b"\nexif\n 99\n" + b"4578696600004949zz"
    yield "png raw exif.png", png(before=chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)))
    yield "png xmp.png", png(before=chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="9">'))


def _exifs() -> Iterator[tuple[str, bytes]]:
    turned = (0x0112, 3, 1, b"\x06\0\0\0")
    yield "empty", b""
    yield "no directory", b"II*\0"
    yield "garbage", b"\xff" * 200
    yield "directory far away", exif([turned], first=2**32 - 1)
    yield "65535 entries promised", exif([turned], count=65_535)
    yield "orientation 77", exif([(0x0112, 3, 1, b"M\0\0\0")])
    yield "orientation of type 99", exif([(0x0112, 99, 1, b"\1\0\0\0")])
    yield "orientation is text", exif([(0x0112, 2, 4, b"up!\0")])
    yield "orientation of 2^32 values", exif([(0x0112, 3, 2**32 - 1, b"\x08\0\0\0")])
    yield "orientation twice", exif([turned, (0x0112, 3, 1, b"\x08\0\0\0")])
    yield "fraction by zero", exif([(0x011A, 5, 1, b"\x08\0\0\0"), turned])
    yield "directory in itself", exif([(0x8769, 4, 1, b"\x08\0\0\0"), turned])
    yield "overlapping values", exif([(tag, 1, 8_000, b"\0\0\0\0") for tag in range(1, 700)])


def _jpegs() -> Iterator[tuple[str, bytes]]:
    whole = encoded(photo(), "JPEG", quality=90)
    frame = whole.index(b"\xff\xc0")
    scan = whole.index(b"\xff\xda")

    def sized(width: int, height: int) -> bytes:
        return whole[: frame + 5] + struct.pack(">HH", height, width) + whole[frame + 9 :]

    def with_segment(marker: int, body: bytes, length: int | None = None) -> bytes:
        size = len(body) + 2 if length is None else length
        return whole[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", size) + body + whole[2:]

    yield "jpeg 65535 square.jpg", sized(65_535, 65_535)
    yield "jpeg 16384 x 4096 without pixels.jpg", sized(16_384, 4096)[: scan + 20]
    yield "jpeg no height.jpg", sized(48, 0)
    yield "jpeg no components.jpg", whole[: frame + 9] + b"\0" + whole[frame + 10 :]
    yield "jpeg 255 components.jpg", whole[: frame + 9] + b"\xff" + whole[frame + 10 :]
    yield "jpeg 12 bits.jpg", whole[: frame + 4] + b"\x0c" + whole[frame + 5 :]
    yield "jpeg sampling 15.jpg", whole[: frame + 11] + b"\xff" + whole[frame + 12 :]
    yield "jpeg arithmetic.jpg", whole[: frame + 1] + b"\xc9" + whole[frame + 2 :]
    yield "jpeg lossless.jpg", whole[: frame + 1] + b"\xc3" + whole[frame + 2 :]
    yield "jpeg segment of length 0.jpg", with_segment(0xE0, b"", 0)
    yield "jpeg segment longer than the file.jpg", with_segment(0xE5, b"x", 65_535)
    yield "jpeg tables of 0.jpg", with_segment(0xDB, b"\0" + b"\0" * 64)
    yield "jpeg huffman lies.jpg", with_segment(0xC4, b"\0" + b"\xff" * 16 + b"a" * 50)
    yield "jpeg restart every 1.jpg", with_segment(0xDD, b"\0\1")
    yield "jpeg ends at the start.jpg", b"\xff\xd8\xff\xd9"
    yield "jpeg only markers.jpg", b"\xff\xd8" + b"\xff" * 5000
    yield "jpeg bits flipped.jpg", whole[: scan + 40] + bytes(b ^ 0xA5 for b in whole[scan + 40 :])
    yield "jpeg icc lies.jpg", with_segment(0xE2, b"ICC_PROFILE\0\1\1" + icc(declared=9))
    yield "jpeg icc part 7 of 3.jpg", with_segment(0xE2, b"ICC_PROFILE\0\7\3" + icc())
    yield "jpeg icc without parts.jpg", with_segment(0xE2, b"ICC_PROFILE\0")
    yield "jpeg mpf garbage.jpg", with_segment(0xE2, b"MPF\0" + b"\xff" * 40)
    yield "jpeg photoshop garbage.jpg", with_segment(0xED, b"Photoshop 3.0\x008BIM\xff\xff\xff")
    yield "jpeg jfif short.jpg", with_segment(0xE0, b"JFIF")
    yield "jpeg adobe short.jpg", with_segment(0xEE, b"Adobe")
    for name, blob in _exifs():
        yield f"jpeg exif {name}.jpg", with_segment(0xE1, b"Exif\0\0" + blob)
    yield "jpeg lab.jpg", encoded(photo(mode="CMYK"), "JPEG", icc_profile=icc(space=b"Lab "))


def _tiffs() -> Iterator[tuple[str, bytes]]:
    yield "tiff 2^32 - 1 square.tif", tiff({256: (4, 2**32 - 1), 257: (4, 2**32 - 1)})
    yield "tiff tile of 30000 square.tif", tiff({322: (4, 30_000), 323: (4, 30_000), 324: (4, 1024), 325: (4, 1024)})
    deflated = zlib.compress(bytes(2**20), 9)
    for name, side in (("20000", 20_000), ("46336", 46_336), ("2^30", 2**30)):
        tags = {259: (3, 8), 322: (4, side), 323: (4, side), 324: (4, 1024), 325: (4, len(deflated))}
        yield f"tiff deflated tile of {name} square.tif", tiff(tags, deflated)
    yield "tiff deflated strip of 2^32.tif", tiff({259: (3, 8), 278: (4, 2**32 - 1), 279: (4, len(deflated))}, deflated)
    for name, code in (("ccitt", 4), ("lzw", 5), ("old jpeg", 6), ("jpeg", 7), ("packbits", 32773), ("lzma", 34925)):
        yield f"tiff {name} garbage.tif", tiff({259: (3, code)}, b"\xa5\xff\0" * 400)
    for name, code in (("zstd", 50000), ("webp", 50001), ("unknown", 60000)):
        yield f"tiff {name} garbage.tif", tiff({259: (3, code)}, b"\xa5\xff\0" * 400)
    yield "tiff strip outside.tif", tiff({273: (4, 2**31)})
    yield "tiff strip of 4 GB.tif", tiff({279: (4, 2**32 - 1)})
    yield "tiff no width.tif", tiff({256: (4, 0)})
    yield "tiff width is text.tif", tiff({256: (2, 32)})
    yield "tiff 65535 samples.tif", tiff({277: (3, 65_535)})
    yield "tiff bits 7.tif", tiff({258: (3, 7)})
    yield "tiff lab.tif", tiff({262: (3, 8), 277: (3, 3), 258: (3, 8)}, b"\x55" * 3072)
    yield "tiff orientation 99.tif", tiff({274: (3, 99)})
    yield "tiff orientation is a fraction.tif", tiff({274: (5, 0)})
    yield "tiff directory in itself.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
    yield "tiff directory of 65535.tif", exif([(256, 4, 1, b"\x20\0\0\0")], count=65_535)
    yield "tiff exif in itself.tif", tiff({0x8769: (4, 8)})
    yield "tiff profile outside.tif", tiff({34675: (7, 2**31)})
    yield "tiff big.tif", tiff({}, big=True)
    yield "tiff big and endless.tif", tiff({256: (16, 2**63)}, big=True)


def _others() -> Iterator[tuple[str, bytes]]:
    webp = encoded(photo(), "WEBP", lossless=True)
    inner = webp[12:20], webp[20:]
    yield "webp canvas of 16384.webp", riff(canvas(16_384, 16_384), (inner[0][:4], inner[1]))
    yield "webp canvas of 16 million.webp", riff(canvas(2**24, 2**24), (inner[0][:4], inner[1]))
    yield "webp animation without frames.webp", riff(canvas(64, 64, 2), (b"ANIM", b"\0" * 6))
    frame = b"\0" * 6 + (15).to_bytes(3, "little") * 2 + b"\0" * 4 + b"VP8L\xff\xff\xff\xff"
    yield "webp 2000 empty frames.webp", riff(canvas(64, 64, 2), (b"ANIM", b"\0" * 6), *[(b"ANMF", frame)] * 2000)
    yield "webp size lies.webp", riff((b"VP8L", inner[1]), size=2**32 - 2)
    yield "webp empty.webp", riff()
    yield "webp alpha garbage.webp", riff(canvas(48, 32, 16), (b"ALPH", b"\xff" * 9), (b"VP8 ", b"\x10\0\0\x9d\1\x2a"))
    yield "webp icc lies.webp", riff(canvas(48, 32, 32), (b"ICCP", icc(declared=1)), (b"VP8L", inner[1]))
    for name, blob in _exifs():
        yield f"webp exif {name}.webp", riff(canvas(48, 32, 8), (b"VP8L", inner[1]), (b"EXIF", blob))
    screen = b"GIF89a" + struct.pack("<HHBBB", 32, 32, 0xF7, 0, 0) + bytes(768)
    block = b"," + struct.pack("<HHHHB", 0, 0, 32, 32, 0) + b"\x08" + b"\x04\0\1\2\3" + b"\0"
    yield "gif 65535 square.gif", b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + block + b";"
    far = b"," + struct.pack("<HHHHB", 60_000, 60_000, 5000, 5000, 0) + b"\x08\0"
    yield "gif frame outside.gif", screen + far + b";"
    yield "gif 5000 frames.gif", screen + block * 5000 + b";"
    yield "gif no frames.gif", screen + b";"
    yield "gif endless comment.gif", screen + b"!\xfe" + (b"\xff" + b"a" * 255) * 8000
    yield "gif code size 200.gif", screen + b"," + struct.pack("<HHHHB", 0, 0, 32, 32, 0) + b"\xc8\x02ab\0;"
    bmp = encoded(photo(), "BMP")
    lies = (("height", 22, -(2**31)), ("width", 18, 2**31 - 1), ("bits", 28, 9), ("packing", 30, 77))
    for name, place, value in lies:
        yield f"bmp {name} {value}.bmp", bmp[:place] + struct.pack("<i", value) + bmp[place + 4 :]
    yield "bmp pixels outside.bmp", bmp[:10] + struct.pack("<I", 2**32 - 1) + bmp[14:]
    yield "bmp header of 4 GB.bmp", bmp[:14] + struct.pack("<I", 2**32 - 1) + bmp[18:]
    yield "bmp 2^32 colours.bmp", bmp[:28] + struct.pack("<H", 8) + bmp[30:46] + struct.pack("<I", 2**32 - 1) + bmp[50:]
    yield "bmp run lengths.bmp", bmp[:28] + struct.pack("<HI", 8, 1) + bmp[34:54] + b"\0\2\xff\xff" * 500


def _strangers() -> Iterator[tuple[str, bytes]]:
    """Formats that are not opened, whatever they are called: some run programs, some are other than they seem."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(/tmp/x) (w) file\nshowpage\n"
    yield "eps.png", postscript
    yield "eps.eps", postscript
    yield "pdf.png", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n"
    yield "svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    yield "html.jpg", b"<!doctype html><script>alert(1)</script>"
    yield "xml entities.png", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'
    yield "pickle.png", b"\x80\x04cposix\nsystem\n(S'true'\ntR."
    yield "zip.png", b"PK\x03\x04" + b"\0" * 60
    for kind in ("TGA", "PCX", "PPM", "ICO", "ICNS", "SGI", "MSP", "XBM", "DDS", "PDF", "JPEG2000"):
        image = photo(64, 64, "1" if kind in ("MSP", "XBM") else "RGB")
        yield f"{kind.lower()}.png", encoded(image, kind)
    yield "fits.png", b"SIMPLE  =                    T".ljust(2880)
    yield "wmf.png", b"\xd7\xcd\xc6\x9a" + b"\0" * 60
    yield "psd.png", b"8BPS\0\1" + b"\0" * 60
    yield "mpo.jpg", encoded(photo(), "MPO", save_all=True, append_images=[photo()])
    yield "zeros.png", bytes(4096)
    yield "nothing.png", b""
    yield "text.png", "Lieber Himmel \u202e gnp".encode()


def _cut() -> Iterator[tuple[str, bytes]]:
    """Each format, cut off at nine places."""
    options = {"JPEG": {"progressive": True}, "TIFF": {"compression": "tiff_lzw"}}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        whole = encoded(photo(), kind, **options.get(kind, {}))
        for part in range(1, 10):
            yield f"{kind} {part} tenths.{kind.lower()}", whole[: len(whole) * part // 10]


GROUPS: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "png": _pngs,
    "jpeg": _jpegs,
    "tiff": _tiffs,
    "webp, gif and bmp": _others,
    "other formats": _strangers,
    "cut off": _cut,
}
