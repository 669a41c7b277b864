"""EAM Report on the real server: measures, seams of the sampler's tiles, time and cache, broken pictures and pairs."""

import math
import re
import time
from typing import Any

import numpy as np
import pytest
from comfy_host import ComfyServer, ExecutionError
from graphs import TILED, Graph, Node, applied, fresh, photo, read
from PIL import Image

COLUMNS = ["picture", "size", "input", "scale", "psnr", "ssim", "shift", "seams", "values", "seconds", "memory"]


def restored(graph: Graph, **changes: Any) -> tuple[Node, Node]:
    """Return the applied control and the decoded picture of 128 x 96 pixels, in tiles of 64."""
    control = applied(graph)
    sampled = graph.tiled_sampler(control, **TILED | changes)
    return control, graph.add("VAEDecode", samples=sampled[0], vae=graph.prompt[control]["inputs"]["vae"])


def report(graph: Graph, image: Any, original: Any, **inputs: Any) -> tuple[Node, Node]:
    node = graph.add("EAM_Report", restored=image, original=original, **inputs)
    return node, graph.add("PreviewAny", source=node[1])


def rows(outputs: dict[str, Any], table: Node) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in outputs[table]["text"][0].splitlines()]
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines[2:]]


def test_report_of_a_restoration(server: ComfyServer, photos: None) -> None:
    graph = fresh(server)
    control, picture = restored(graph)
    original = graph.prompt[control]["inputs"]["image"]
    node, table = report(graph, picture[0], original, model=control[0], **TILED)
    shown = graph.add("PreviewImage", images=picture[0])
    before = time.monotonic()
    outputs = server.run(graph.prompt)
    wall = time.monotonic() - before
    text, (row,) = outputs[node]["text"][0], rows(outputs, table)
    assert (row["size"], row["input"], row["scale"], row["values"]) == ("128 x 96", "32 x 24", "4", "ok")
    assert 0 < float(row["seconds"]) <= wall
    assert f"The run took {row['seconds']} s up to here." in text, "nothing was cached"
    assert 0.2 < float(row["memory"]) < 50 and f"Peak memory: {row['memory']} GB of main memory" in text
    assert re.search(rf"borders of its 6 tiles are {float(row['seams']):.2f} times", text)
    pixels = Image.fromarray(read(server, outputs[shown]["images"][0]).astype(np.uint8))
    low = Image.open(server.work_dir / "input" / "one.png").convert("RGB")
    error = np.asarray(pixels.resize(low.size, Image.Resampling.BICUBIC)).astype(float) - np.asarray(low)
    assert float(row["psnr"]) == pytest.approx(-10 * math.log10((error**2).mean() / 255**2), abs=0.3)
    assert 0 < float(row["ssim"]) < 1 and 0 < float(row["shift"]) < 30


def test_seams_after_upscale_are_those_of_its_sampler(server: ComfyServer, photos: None) -> None:
    graph = fresh(server)
    image = photo(graph)
    upscaled = graph.add("EAM_Upscale", image=image, scale=8.0, fidelity=0.0, caption="", seed=1)
    node, _ = report(graph, upscaled[0], image, model=upscaled[2])
    nothing, _ = report(graph, upscaled[0], image)
    outputs = server.run(graph.prompt)
    # 256 x 192 pixels fit into one of the embedded model's tiles.
    assert "One tile covers it" in outputs[node]["text"][0]
    assert "Seams were not measured" in outputs[nothing]["text"][0]


def test_time_is_of_this_run_and_cached_results_have_none(server: ComfyServer, photos: None) -> None:
    graph = fresh(server)
    control, picture = restored(graph)
    original = graph.prompt[control]["inputs"]["image"]
    node, table = report(graph, picture[0], original, **TILED)
    other, _ = report(graph, picture[0], original, tile=64)
    first = server.run(graph.prompt)
    assert "The run took" in first[node]["text"][0] and "The run took" in first[other]["text"][0]
    again = server.run(graph.prompt)
    assert again[node]["text"] == first[node]["text"], "a report of unchanged inputs is cached like any node"
    graph.prompt[node]["inputs"]["overlap"] = 16
    changed = server.run(graph.prompt)
    assert rows(changed, table)[0]["seconds"] == "cached"
    assert "Everything before this node came from the cache" in changed[node]["text"][0]
    assert changed[other]["text"] == first[other]["text"]
    sampler = next(key for key, value in graph.prompt.items() if value["class_type"] == "EAM_TiledSampler")
    graph.prompt[sampler]["inputs"]["seed"] += 1
    resampled = server.run(graph.prompt)[node]["text"][0]
    assert re.search(
        r"The run took [\d.]+ s up to here; 4 of the 6 nodes before this one came from the cache", resampled
    )


def test_batches_black_pictures_and_seams_without_tiles(graph: Graph) -> None:
    original = photo(graph)
    large = graph.add("ImageScale", image=original, upscale_method="bicubic", width=128, height=96, crop="disabled")
    black = graph.add("EmptyImage", width=128, height=96, batch_size=1, color=0)
    both = graph.add("ImageBatch", image1=large[0], image2=black[0])
    node, table = report(graph, both[0], original, tile=256)
    unmeasured, _ = report(graph, large[0], original)
    pair = graph.add("ImageBatch", image1=original, image2=photo(graph, "two"))
    each, table_of_each = report(graph, both[0], pair[0])
    outputs = graph.server.run(graph.prompt)
    text, (good, dark) = outputs[node]["text"][0], rows(outputs, table)
    assert (good["values"], dark["values"]) == ("ok", "black")
    assert float(good["psnr"]) > 30 > float(dark["psnr"])
    assert text.startswith("Warning: Picture 2: the picture is black") and text.count("Warning") == 1
    assert "One tile covers it" in text
    assert "Seams were not measured" in outputs[unmeasured]["text"][0]
    assert rows(outputs, table_of_each)[1]["psnr"] != dark["psnr"], "the second is measured against its own original"
    assert outputs[each]["text"][0].count("Picture 2") == 2


@pytest.mark.parametrize(
    ("size", "count", "message"),
    [
        ((16, 16), 1, "at least as large as its original, got 16 x 16 from 32 x 24"),
        ((128, 128), 1, "proportions, got 128 x 128 from 32 x 24"),
        ((128, 96), 3, "expected one original or as many as restored images, got 2 for 3"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(graph: Graph, size: tuple[int, int], count: int, message: str) -> None:
    original = photo(graph)
    if count > 1:
        original = graph.add("ImageBatch", image1=original, image2=original)[0]
    picture = graph.add("EmptyImage", width=size[0], height=size[1], batch_size=count, color=255)
    report(graph, picture[0], original)
    with pytest.raises(ExecutionError, match=message):
        graph.server.run(graph.prompt)
