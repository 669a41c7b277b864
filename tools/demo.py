"""Restore the bundled photo in a real ComfyUI: what `make demo` runs, once the packages are installed."""

import argparse
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from comfy_host import REPO, ComfyServer, HostError, Progress, SetupError, graph_to_prompt
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

PHOTO = REPO / "eam_core" / "assets" / "sample_lr.png"
WORKFLOW = REPO / "example_workflows" / "eam_upscale.json"
OUTPUT = REPO / "output" / "demo"
DIVIDER = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running afterwards, until Ctrl-C")
    serve = parser.parse_args().serve
    # Leave through the context managers, so that ComfyUI is stopped as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        print("Starting ComfyUI ...", flush=True)
        with ComfyServer(OUTPUT / "comfyui") as server:
            restore(server)
            if serve:
                print(f"ComfyUI is at {server.url} (the workflow is under Templates); Ctrl-C stops it.", flush=True)
                server.wait()
    except KeyboardInterrupt:
        print("\nStopped.")
    except SetupError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except (HostError, ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def restore(server: ComfyServer) -> None:
    """Run the example workflow on the bundled photo and write the two pictures."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    prompt = graph_to_prompt(workflow, server.object_info())
    name = server.upload_image(PHOTO)
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = name

    began = time.perf_counter()
    with tqdm(desc="Restoring", leave=False) as bar:
        outputs = server.run(prompt, lambda progress: show(bar, progress))
    seconds = time.perf_counter() - began

    restored = server.fetch(saved_image(prompt, outputs))
    write_whole(OUTPUT / "restored.png", restored)
    write_whole(OUTPUT / "before_after.png", side_by_side(PHOTO, restored))
    print(f"Restored in {seconds:.1f} s\n{OUTPUT / 'restored.png'}\n{OUTPUT / 'before_after.png'}", flush=True)


def show(bar: "tqdm[Any]", progress: Progress) -> None:
    """Let the bar follow the node that is running."""
    bar.set_description(progress.node_type, refresh=False)
    bar.total, bar.n = progress.maximum, progress.value
    bar.refresh()


def saved_image(prompt: dict[str, Any], outputs: dict[str, Any]) -> dict[str, str]:
    """Return the picture that the workflow's SaveImage node wrote."""
    for node_id, node in prompt.items():
        if node["class_type"] == "SaveImage":
            return outputs[node_id]["images"][0]
    raise ValueError(f"expected a SaveImage node in {WORKFLOW}, got none; add one behind the restored image")


def side_by_side(photo: Path, restored: bytes) -> bytes:
    """Draw the enlarged input and the restored picture at the same size, with a thin divider and labels, as PNG."""
    after = Image.open(io.BytesIO(restored)).convert("RGB")
    before = Image.open(photo).convert("RGB").resize(after.size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (2 * after.width + DIVIDER, after.height), "white")
    for left, picture, label in ((0, before, "Input, bicubic"), (after.width + DIVIDER, after, "Restored")):
        canvas.paste(picture, (left, 0))
        draw = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(size=14)
        width = draw.textlength(label, font=font)
        draw.rectangle((left + 6, 6, left + 16 + width, 28), fill="black")
        draw.text((left + 11, 8), label, fill="white", font=font)
    png = io.BytesIO()
    canvas.save(png, "PNG")
    return png.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when whole."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
