"""A whole 4x restoration in a real ComfyUI against two other ways to tile it, with the same model, steps and sampler.

    python tests/bench/whole_restoration.py [--size 256] [--rounds 3]

- pasted: each padded tile is restored as a picture of its own (encode, sample, decode) and pasted with a feathered
  mask, as Ultimate SD Upscale does; tile 256 px, padding 32, feather 8.
- areas: the whole latents are sampled with one conditioning area per tile, which core predicts apart and averages, as
  MultiDiffusion in TiledDiffusion does; tile 256 px, overlap 64, like ours; core batches as many as memory holds.
- ours: EAM Tiled Sampler as it is, with as many tiles at once as pay (tile_batch 0).

All run through KSampler's own schedule, eight steps from pure noise, CFG 1, the embedded default. The ways take turns
on inputs that ComfyUI has not cached; the time is the CPU time of its process, picture in to picture out.
"""

import io
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from comfy_host import ComfyServer

from eam_core.images import load_image, resize
from eam_core.presets import ASSETS
from eam_core.seams import seam_ratio
from eam_core.tile_plan import overlapping_tiles
from eam_core.tiling import TileGrid

SCALE, TILE, OVERLAP, PADDING, FEATHER = 4, 256, 64, 32, 8
SAMPLING = {"steps": 8, "cfg": 1.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}


class Graph:
    """A prompt in the making, with what all ways share."""

    def __init__(self, picture: str, seed: int):
        self.prompt: dict[str, Any] = {}
        self.seed = seed
        self.image = self.add("LoadImage", image=picture)
        self.loaded = self.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control="auto")
        self.text = self.add("CLIPTextEncode", text="", clip=[self.loaded, 1])

    def add(self, kind: str, **inputs: Any) -> str:
        name = str(len(self.prompt) + 1)
        self.prompt[name] = {"class_type": kind, "inputs": inputs}
        return name

    def control(self, image: str) -> str:
        return self.add(
            "EAM_ApplyControl",
            model=[self.loaded, 0],
            positive=[self.text, 0],
            negative=[self.text, 0],
            vae=[self.loaded, 2],
            control=[self.loaded, 3],
            image=[image, 0],
            scale=float(SCALE),
            control_scale=1.0,
            start=0.0,
            end=1.0,
        )

    def core_sample(self, applied: str, positive: list[Any]) -> str:
        inputs = {"model": [applied, 0], "positive": positive, "negative": [applied, 2], "latent_image": [applied, 3]}
        return self.add("KSampler", seed=self.seed, denoise=1.0, **inputs, **SAMPLING)

    def decoded(self, sampled: str) -> str:
        return self.add("VAEDecode", samples=[sampled, 0], vae=[self.loaded, 2])

    def finished(self, image: str) -> tuple[dict[str, Any], str]:
        return self.prompt, self.add("PreviewImage", images=[image, 0])


def ours(graph: Graph, side: int) -> str:
    """Blend tiles at every step."""
    applied = graph.control(graph.image)
    links = {"model": [applied, 0], "positive": [applied, 1], "negative": [applied, 2], "latent": [applied, 3]}
    tiles = {"tile": TILE, "overlap": OVERLAP, "tile_batch": 0, "start_sigma": 1.0, "fidelity": 0.0}
    return graph.decoded(graph.add("EAM_TiledSampler", seed=graph.seed, **links, **SAMPLING, **tiles))


def pasted(graph: Graph, side: int) -> str:
    """Restore padded tiles one by one and paste them."""
    canvas = graph.add("EmptyImage", width=side, height=side, batch_size=1, color=0)
    for top in range(0, side, TILE):
        for left in range(0, side, TILE):
            y, x = max(0, top - PADDING), max(0, left - PADDING)
            height, width = min(side, top + TILE + PADDING) - y, min(side, left + TILE + PADDING) - x
            box = {"x": x // SCALE, "y": y // SCALE, "width": width // SCALE, "height": height // SCALE}
            applied = graph.control(graph.add("ImageCrop", image=[graph.image, 0], **box))
            restored = graph.decoded(graph.core_sample(applied, [applied, 1]))
            # The middle shows; towards neighbours it fades over the feather, beyond it the padding is hidden.
            inner = graph.add("SolidMask", value=0.0, width=width, height=height)
            shown = {
                "left": left - x - FEATHER if left > x else 0,
                "top": top - y - FEATHER if top > y else 0,
            }
            right = left - x + TILE + FEATHER if left + TILE < side else width
            bottom = top - y + TILE + FEATHER if top + TILE < side else height
            size = {"width": right - shown["left"], "height": bottom - shown["top"]}
            solid = graph.add("SolidMask", value=1.0, **size)
            edges = {
                "left": FEATHER * (left > x),
                "top": FEATHER * (top > y),
                "right": FEATHER * (right < width),
                "bottom": FEATHER * (bottom < height),
            }
            feathered = graph.add("FeatherMask", mask=[solid, 0], **edges)
            place = {"x": shown["left"], "y": shown["top"], "operation": "add"}
            mask = graph.add("MaskComposite", destination=[inner, 0], source=[feathered, 0], **place)
            links = {"destination": [canvas, 0], "source": [restored, 0], "mask": [mask, 0]}
            canvas = graph.add("ImageCompositeMasked", x=x, y=y, resize_source=False, **links)
    return canvas


def areas(graph: Graph, side: int) -> str:
    """Give core one conditioning area per tile."""
    applied, positive = graph.control(graph.image), None
    for y, x, height, width in TileGrid(height=side, width=side, tile=TILE, overlap=OVERLAP, align=16).boxes:
        box = {"x": x, "y": y, "width": width, "height": height}
        area = [graph.add("ConditioningSetArea", conditioning=[applied, 1], strength=1.0, **box), 0]
        joined = {"conditioning_1": positive, "conditioning_2": area}
        positive = area if positive is None else [graph.add("ConditioningCombine", **joined), 0]
    assert positive is not None
    return graph.decoded(graph.core_sample(applied, positive))


WAYS = {"ours": ours, "pasted": pasted, "areas": areas}


def cpu_seconds(server: ComfyServer) -> float:
    """Return the CPU time that ComfyUI's process has used."""
    assert server._process is not None
    fields = Path(f"/proc/{server._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(server: ComfyServer, way: str, picture: str, side: int, seed: int) -> tuple[float, Tensor]:
    """Restore once; return seconds and the picture [1, 3, H, W]."""
    graph = Graph(picture, seed)
    prompt, shown = graph.finished(WAYS[way](graph, side))
    start = cpu_seconds(server)
    found = server.run(prompt)[shown]["images"][0]
    seconds = cpu_seconds(server) - start
    pixels = np.array(Image.open(io.BytesIO(server.fetch(found))).convert("RGB"))
    return seconds, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def seams(way: str, restored: Tensor) -> float:
    """Return the steps where tiles meet over those elsewhere."""
    side = restored.shape[-1]
    grid = TileGrid(height=side, width=side, tile=TILE, overlap=0 if way == "pasted" else OVERLAP, align=16)
    grid = overlapping_tiles(grid) if way == "ours" else grid
    ratio = seam_ratio(restored, grid, period=16)
    assert ratio is not None, "a picture without steps"
    return ratio


def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--size", type=int, default=256, help="side of the input in pixels, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    side = options.size * SCALE
    photo = resize(load_image(ASSETS / "sample_lr.png").rgb, (options.size, options.size)).clamp(0, 1)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    steps: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        for number in range(-1, options.rounds):
            for way in WAYS:
                path = Path(folder) / f"{way}{number + 1}.png"
                pixels = photo.roll(number + 1, -1)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
                Image.fromarray(pixels).save(path)
                spent, restored = run(server, way, server.upload_image(path), side, seed=number + 1)
                if number >= 0:
                    seconds[way].append(spent)
                    steps[way].append(seams(way, restored))
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    print(report.machine())
    print("| way | time / ours | borders |\n|---|---|---|")
    for way, value in middle.items():
        print(f"| {way} | {value / middle['ours']:.2f} | {statistics.mean(steps[way]):.3f} |")
    name = f"whole restoration to {side} px in ComfyUI, CPU, against tiles"
    rows = [
        report.Row(row=4, name=f"{name} {way}", value=middle["ours"] / middle[way], bar=0.8)
        for way in ("pasted", "areas")
    ]
    for way in ("pasted", "areas"):
        excess = abs(statistics.mean(steps["ours"]) - 1) - abs(statistics.mean(steps[way]) - 1)
        rows.append(report.Row(row=4, name=f"steps across borders beyond those of tiles {way}", value=excess, bar=0.0))
    report.finish(rows, options.rows)


if __name__ == "__main__":
    main()
