"""Draw example_workflows/*.jpg, the pictures of ComfyUI's template browser: python tools/thumbnails.py

Workflows that run with the embedded model are run in a real ComfyUI on the bundled photo, and their own results are
drawn. The others want weights that do not ship: they show the photo as it comes in, and a sketch of what they do.
"""

import io
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_host import REPO, ComfyServer, HostError, graph_to_prompt
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

FOLDER = REPO / "example_workflows"
PHOTO = REPO / "eam_core" / "assets" / "sample_lr.png"
SIDE, BAR = 384, 72
PART = (0.28, 0.08, 0.96, 0.76)
"""What is shown of the photo: left, top, right, bottom as fractions."""
WHITE, BLUE, GREEN, INK = "white", "#4aa3ff", "#5ed17c", "#11161c"
Picture = Image.Image
Sketch = Callable[[Picture, Picture], Picture]
"""Takes photo and result, both SIDE pixels square."""


def split(before: Picture, after: Picture) -> Picture:
    """Photo left, result right, with the handle of the comparison."""
    picture, middle = after.copy(), SIDE // 2
    picture.paste(before.crop((0, 0, middle, SIDE)), (0, 0))
    draw = ImageDraw.Draw(picture)
    draw.line((middle, 0, middle, SIDE), fill=WHITE, width=3)
    high = (SIDE - BAR) // 2
    draw.ellipse((middle - 18, high - 18, middle + 18, high + 18), fill=WHITE)
    for way in (-1, 1):
        points = [(middle + way * 12, high), (middle + way * 5, high - 6), (middle + way * 5, high + 6)]
        draw.polygon(points, fill=INK)
    return picture


def nodes(before: Picture, after: Picture) -> Picture:
    """Nodes and links over the split."""
    picture = split(before, after)
    draw = ImageDraw.Draw(picture)
    boxes = [(24, 40), (24, 150), (150, 95), (276, 40), (276, 150)]
    links = [(0, 2), (1, 2), (2, 3), (2, 4)]
    for start, end in links:
        (x, y), (u, v) = boxes[start], boxes[end]
        draw.line((x + 84, y + 24, u, v + 24), fill=BLUE, width=5)
    for x, y in boxes:
        draw.rounded_rectangle((x, y, x + 84, y + 62), 8, fill="#2b2f36", outline=WHITE, width=2)
        draw.rounded_rectangle((x, y, x + 84, y + 16), 8, fill="#4b525d")
    return picture


def steps(before: Picture, after: Picture) -> Picture:
    """The way of a sampler: photo, noise in it, result."""
    picture, third = after.copy(), SIDE // 3
    noise = Image.frombytes("RGB", (SIDE, SIDE), random.Random(0).randbytes(3 * SIDE * SIDE))
    noisy = Image.blend(before, noise, 0.4)
    picture.paste(before.crop((0, 0, third, SIDE)), (0, 0))
    picture.paste(noisy.crop((third, 0, 2 * third, SIDE)), (third, 0))
    draw = ImageDraw.Draw(picture)
    for left in (third, 2 * third):
        draw.line((left, 0, left, SIDE), fill=WHITE, width=3)
        high = (SIDE - BAR) // 2
        draw.polygon([(left - 14, high - 16), (left - 14, high + 16), (left + 16, high)], fill=WHITE)
    return picture


def tiles(before: Picture, after: Picture) -> Picture:
    """Tiles that are done, one in work, and those to come."""
    picture, size = after.copy(), SIDE // 6
    for number in range(15, 36):
        left, top = number % 6 * size, number // 6 * size
        picture.paste(before.crop((left, top, left + size, top + size)), (left, top))
    draw = ImageDraw.Draw(picture)
    for edge in range(size, SIDE, size):
        draw.line((edge, 0, edge, SIDE), fill=WHITE)
        draw.line((0, edge, SIDE, edge), fill=WHITE)
    draw.rectangle((3 * size - 6, 2 * size - 6, 4 * size + 6, 3 * size + 6), outline=GREEN, width=5)
    return picture


def captions(before: Picture, after: Picture) -> Picture:
    """Quarters with words of their own."""
    picture = after.copy()
    draw = ImageDraw.Draw(picture)
    half, low = SIDE // 2, (SIDE - BAR) // 2
    draw.line((half, 0, half, SIDE), fill=WHITE, width=2)
    draw.line((0, low, SIDE, low), fill=WHITE, width=2)
    words = [("soft white tufts", 0, 0), ("light from behind", 1, 0), ("fine stalks", 0, 1), ("dark seeds", 1, 1)]
    for text, column, row in words:
        middle, top = half // 2 + column * half, low // 2 + row * low
        width = draw.textlength(text, font=font(18)) / 2 + 12
        draw.rounded_rectangle((middle - width, top - 18, middle + width, top + 18), 12, fill=WHITE)
        draw.text((middle, top), text, fill=INK, font=font(18), anchor="mm")
    return picture


def stack(before: Picture, after: Picture) -> Picture:
    """Pictures of a folder, one behind the other."""
    picture = ImageEnhance.Brightness(before).enhance(0.3)
    draw, side = ImageDraw.Draw(picture), 200
    small = [each.resize((side, side), Image.Resampling.LANCZOS) for each in (before, before, after)]
    for number, each in enumerate(small):
        left, top = 40 + 50 * number, 16 + 36 * number
        draw.rectangle((left - 4, top - 4, left + side + 3, top + side + 3), fill=WHITE)
        picture.paste(each, (left, top))
    return picture


def copied_blocks(before: Picture, after: Picture) -> Picture:
    """Blocks, and copies of them that are added."""
    return _dimmed(before, _draw_blocks)


def eye(before: Picture, after: Picture) -> Picture:
    """An eye on the photo."""
    return _dimmed(before, _draw_eye)


def words(text: str) -> Sketch:
    """Return a sketch with the name of a published model."""

    def draw_words(draw: ImageDraw.ImageDraw) -> None:
        draw.text((SIDE // 2, (SIDE - BAR) // 2), text, fill=WHITE, font=font(64), anchor="mm")

    return lambda before, after: _dimmed(before, draw_words)


def _dimmed(before: Picture, sketch: Callable[[ImageDraw.ImageDraw], None]) -> Picture:
    picture = ImageEnhance.Brightness(before).enhance(0.45)
    sketch(ImageDraw.Draw(picture))
    return picture


def _draw_blocks(draw: ImageDraw.ImageDraw) -> None:
    for row in range(3):
        top = 40 + 85 * row
        draw.rounded_rectangle((70, top, 160, top + 52), 8, fill="#4b525d", outline=WHITE, width=3)
        draw.rounded_rectangle((224, top, 314, top + 52), 8, fill=BLUE, outline=WHITE, width=3)
        draw.line((224, top + 26, 178, top + 26), fill=WHITE, width=4)
        draw.polygon([(164, top + 26), (180, top + 17), (180, top + 35)], fill=WHITE)
        if row < 2:
            draw.line((115, top + 52, 115, top + 85), fill=WHITE, width=4)
            draw.line((269, top + 52, 269, top + 85), fill=WHITE, width=4)


def _draw_eye(draw: ImageDraw.ImageDraw) -> None:
    middle, high = SIDE // 2, (SIDE - BAR) // 2
    draw.arc((middle - 130, high - 60, middle + 130, high + 200), 215, 325, fill=WHITE, width=10)
    draw.arc((middle - 130, high - 200, middle + 130, high + 60), 35, 145, fill=WHITE, width=10)
    draw.ellipse((middle - 42, high - 42, middle + 42, high + 42), fill=BLUE, outline=WHITE, width=5)
    draw.ellipse((middle - 16, high - 16, middle + 16, high + 16), fill=INK)


# Name: title, second line, sketch, and whether it runs with the embedded model.
THUMBNAILS: dict[str, tuple[str, str, Sketch, bool]] = {
    "eam_quick_start": ("Quick start", "one node, compare and measure", split, True),
    "eam_upscale": ("Expert", "every part as a node", nodes, True),
    "eam_ksampler": ("KSampler", "ComfyUI's own sampler", steps, True),
    "eam_tiled_4k": ("Tiled 4K", "memory follows the tile", tiles, True),
    "eam_tile_captions": ("Captions per tile", "each tile has its own prompt", captions, True),
    "eam_folder": ("Folder", "names kept, goes on where it stopped", stack, True),
    "eam_controlnet": ("ControlNet baseline", "weights you have trained", copied_blocks, False),
    "eam_image_prompt": ("Image prompt", "weights you have trained", eye, False),
    "dit4sr_upscale": ("DiT4SR", "published weights, 40 steps", words("DiT4SR"), False),
    "tsdsr_upscale": ("TSD-SR", "published weights, one step", words("TSD-SR"), False),
}


def draw_all(server: ComfyServer) -> None:
    """Run what runs, and write all thumbnails."""
    name, photo = server.upload_image(PHOTO), Image.open(PHOTO).convert("RGB")
    for key, (title, line, sketch, runs) in THUMBNAILS.items():
        result = run(server, key, name) if runs else photo
        picture = labelled(sketch(square(photo), square(result)), title, line)
        picture.save(FOLDER / f"{key}.jpg", quality=82, optimize=True)
        print(f"{key}.jpg", flush=True)


def run(server: ComfyServer, key: str, photo: str) -> Picture:
    """Run a workflow on a photo of the input folder; return its result."""
    prompt = graph_to_prompt(json.loads((FOLDER / f"{key}.json").read_text(encoding="utf-8")), server.object_info())
    for node in prompt.values():
        node["inputs"] |= {
            "LoadImage": {"image": photo},
            "EAM_LoadFolder": {"pattern": photo},
            # No captioner is at hand, and the embedded model would not read its captions.
            "EAM_SubjectCaption": {"caption": "a dandelion", "tile_captions": False},
        }.get(node["class_type"], {})
    outputs = server.run(prompt)
    for node_id, node in prompt.items():
        if node["class_type"] in ("SaveImage", "EAM_SaveFolder"):
            return Image.open(io.BytesIO(server.fetch(outputs[node_id]["images"][0]))).convert("RGB")
    raise ValueError(f"expected a node that saves in {key}, got none")


def square(picture: Picture) -> Picture:
    """Cut out the part that is shown, at the thumbnail's size."""
    box = tuple(fraction * length for fraction, length in zip(PART, picture.size * 2, strict=True))
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


def labelled(picture: Picture, title: str, line: str) -> Picture:
    """Put a bar with two lines of text at the foot."""
    draw: Any = ImageDraw.Draw(picture)
    draw.rectangle((0, SIDE - BAR, SIDE, SIDE), fill=INK)
    draw.text((18, SIDE - BAR + 8), title, fill=WHITE, font=font(27))
    draw.text((18, SIDE - BAR + 43), line, fill="#b9c4cf", font=font(17))
    return picture


def font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
            draw_all(server)
    except (HostError, ValueError) as error:
        print(f"thumbnails: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
