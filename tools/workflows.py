"""Write example_workflows/: python tools/workflows.py, once a node's inputs or a workflow's settings have changed.

Starts a ComfyUI to ask it for the nodes' inputs. Each function below is one workflow; what it leaves out stays at the
node's default.
"""

import json
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_host import REPO, ComfyServer, HostError
from workflow_sheet import Link, Node, Sheet

FOLDER = REPO / "example_workflows"
NOTES = Path(__file__).with_name("workflow_notes")
PHOTO = "example.png"
EMBEDDED = "embedded (tiny, no text)"
SD3 = "sd3_medium_incl_clips_t5xxlfp8.safetensors"
SD3_SAMPLING = {"steps": 28, "cfg": 5.0, "sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform", "start_sigma": 1.0}
POSITIVE = {"color": "#232", "bgcolor": "#353"}
NEGATIVE = {"color": "#322", "bgcolor": "#533"}
Json = dict[str, Any]


def quick_start() -> Sheet:
    sheet = begin("eam_quick_start")
    sheet.column("1  Pick a photo")
    photo = sheet.add("LoadImage", "Low-resolution photo", image=PHOTO)
    sheet.column("2  Restore")
    restored = sheet.add("EAM_Upscale", "Restore and enlarge", image=photo["IMAGE"])
    sheet.column("3  Compare")
    sheet.add("EAM_Compare", "Before and after", before=photo["IMAGE"], after=restored["IMAGE"])
    sheet.column("4  Keep")
    sheet.add("SaveImage", "Restored", images=restored["IMAGE"], filename_prefix="EAM")
    measured = {"restored": restored["IMAGE"], "original": photo["IMAGE"], "model": restored["model"]}
    sheet.add("EAM_Report", "How faithful it is", **measured)
    return sheet


def folder() -> Sheet:
    sheet = begin("eam_folder")
    sheet.column("1  A folder")
    source = sheet.add("EAM_LoadFolder", "Pictures, one a run", pattern=PHOTO, output_folder="eam_folder")
    sheet.column("2  Restore")
    restored = sheet.add("EAM_Upscale", "Restore and enlarge", image=source["IMAGE"])
    sheet.column("3  Save under its name")
    sheet.add("EAM_SaveFolder", "Restored", image=restored["IMAGE"], item=source["item"])
    sheet.column("4  Compare")
    sheet.add("EAM_Compare", "Before and after", before=source["IMAGE"], after=restored["IMAGE"])
    return sheet


def expert() -> Sheet:
    sheet = begin("eam_upscale", "8f5c1f0e-6f0d-4c53-9d8e-3a7f5a0c2b11")
    photo, loaded = load(sheet)
    applied = control(sheet, loaded, photo["IMAGE"], *prompts(sheet, loaded))
    finish(sheet, tiled(sheet, applied)["LATENT"], loaded, photo["IMAGE"], "EAM")
    return sheet


def ksampler() -> Sheet:
    sheet = begin("eam_ksampler")
    photo, loaded = load(sheet)
    small = sheet.add(
        "ImageScaleToMaxDimension", "Small photo", image=photo["IMAGE"], upscale_method="lanczos", largest_size=256
    )
    applied = control(sheet, loaded, small["IMAGE"], *prompts(sheet, loaded))
    sheet.column("Restore")
    sampled = sheet.add(
        "KSampler",
        "Sample the whole picture",
        **guided(applied, "latent_image"),
        **{"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "sgm_uniform", "denoise": 0.5},
    )
    finish(sheet, sampled["LATENT"], loaded, small["IMAGE"], "EAM_KSampler")
    return sheet


def tiled_4k() -> Sheet:
    sheet = begin("eam_tiled_4k")
    photo, loaded = load(sheet)
    applied = control(sheet, loaded, photo["IMAGE"], *prompts(sheet, loaded), scale=5.0)
    sampled = tiled(sheet, applied)
    pieces = {"kind": "VAEDecodeTiled", "title": "Decode in tiles", "tile_size": 1024, "overlap": 128}
    finish(sheet, sampled["LATENT"], loaded, photo["IMAGE"], "EAM_4K", **pieces)
    return sheet


def tile_captions() -> Sheet:
    sheet = begin("eam_tile_captions")
    photo, loaded = load(sheet)
    captioner = sheet.add("EAM_LoadCaptioner", "Captioner", source="http://127.0.0.1:8000/v1")
    sheet.column("Describe")
    described = sheet.add(
        "EAM_SubjectCaption",
        "Describe photo and tiles",
        **{"image": photo["IMAGE"], "captioner": captioner["captioner"], "tile_captions": True},
    )
    negative = sheet.add(
        "CLIPTextEncode", "What to avoid", NEGATIVE, clip=loaded["CLIP"], text="blurry, noisy, low quality"
    )
    sheet.column("Encode")
    positive = sheet.add(
        "CLIPTextEncode", "What the photo shows", POSITIVE, clip=loaded["CLIP"], text=described["caption"]
    )
    tiles = sheet.add(
        "EAM_EncodeTileCaptions",
        "What each tile shows",
        POSITIVE,
        **{"clip": loaded["CLIP"], "tile_captions": described["tile_captions"]},
    )
    applied = control(sheet, loaded, photo["IMAGE"], positive, negative)
    sampled = tiled(sheet, applied, tile_positive=tiles["tile_positive"], tile_strength=0.5)
    finish(sheet, sampled["LATENT"], loaded, photo["IMAGE"], "EAM_tile_captions")
    return sheet


def controlnet() -> Sheet:
    sheet = begin("eam_controlnet")
    photo, loaded = load(sheet, "Base and ControlNet", checkpoint=SD3, control="controlnet.safetensors")
    applied = control(sheet, loaded, photo["IMAGE"], *prompts(sheet, loaded))
    finish(sheet, tiled(sheet, applied, **SD3_SAMPLING)["LATENT"], loaded, photo["IMAGE"], "EAM_ControlNet")
    return sheet


def image_prompt() -> Sheet:
    sheet = begin("eam_image_prompt")
    photo, loaded = load(sheet, checkpoint=SD3, control="consissr.safetensors")
    tower = sheet.add("CLIPVisionLoader", "Vision model", clip_name="consissr_vision.safetensors")
    positive, negative = prompts(sheet, loaded)
    seen = sheet.add(
        "CLIPVisionEncode",
        "Look at the photo",
        **{"clip_vision": tower["CLIP_VISION"], "image": photo["IMAGE"], "crop": "none"},
    )
    sheet.column("Control")
    prompted = sheet.add(
        "EAM_ImagePrompt",
        "Image prompt",
        **{"model": loaded["MODEL"], "control": loaded["control"], "clip_vision_output": seen["CLIP_VISION_OUTPUT"]},
    )
    applied = control(sheet, loaded, photo["IMAGE"], positive, negative, column="", model=prompted["MODEL"])
    finish(sheet, tiled(sheet, applied, **SD3_SAMPLING)["LATENT"], loaded, photo["IMAGE"], "EAM_image_prompt")
    return sheet


def dit4sr() -> Sheet:
    sheet = begin("dit4sr_upscale", "3b0c7c52-2f5e-4c1b-9a41-6d1f0e4a7d62")
    photo, loaded = load(
        sheet,
        checkpoint="sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors",
        control="dit4sr_q/transformer/diffusion_pytorch_model.safetensors",
    )
    words = (
        "a photo of ... Cinematic, hyper sharpness, highly detailed, perfect without deformations, camera, hyper "
        "detailed photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin "
        "pore detailing.",
        "motion blur, noisy, dotted, bokeh, pointed, CG Style, 3D render, unreal engine, blurring, dirty, messy, worst "
        "quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, lowres, chaotic",
    )
    applied = control(sheet, loaded, photo["IMAGE"], *prompts(sheet, loaded, *words))
    settings = {"steps": 40, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "start_sigma": 1.0}
    sampled = tiled(sheet, applied, "Sample in tiles, as its authors do", **settings)
    finish(sheet, sampled["LATENT"], loaded, photo["IMAGE"], "DiT4SR", colors="adain")
    return sheet


def tsdsr() -> Sheet:
    sheet = begin("tsdsr_upscale", "5d0c6d52-4c1b-4a63-9d0e-6a2b8f5e7c34")
    photo, loaded = load(sheet, checkpoint="sd3_medium.safetensors", control="tsdsr/transformer.safetensors")
    sheet.column("Describe")
    prompt = sheet.add("EAM_ControlPrompt", "The prompt it was trained with", control=loaded["control"])
    applied = control(sheet, loaded, photo["IMAGE"], prompt, prompt)
    sampled = tiled(sheet, applied, "One step, in tiles", start_sigma=1.0)
    finish(sheet, sampled["LATENT"], loaded, photo["IMAGE"], "TSD-SR")
    return sheet


def begin(name: str, workflow_id: str = "") -> Sheet:
    """Start a workflow with its note; its UUID is made of the name unless it has had one before."""
    note = (NOTES / f"{name}.md").read_text(encoding="utf-8").strip()
    return Sheet(note, workflow_id or str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-eam/{name}")))


def load(sheet: Sheet, title: str = "Base and control", **files: str) -> tuple[Node, Node]:
    """Add the photo and the model, the embedded one unless files are named."""
    sheet.column("Load")
    photo = sheet.add("LoadImage", "Low-resolution photo", image=PHOTO)
    return photo, sheet.add("EAM_LoadModel", title, **{"checkpoint": EMBEDDED, "control": "auto", **files})


def prompts(
    sheet: Sheet,
    loaded: Node,
    positive: str = "a sharp, detailed photo",
    negative: str = "blurry, noisy, low quality",
) -> tuple[Node, Node]:
    """Add the two prompts."""
    sheet.column("Describe")
    clip = loaded["CLIP"]
    return (
        sheet.add("CLIPTextEncode", "What the photo shows", POSITIVE, clip=clip, text=positive),
        sheet.add("CLIPTextEncode", "What to avoid", NEGATIVE, clip=clip, text=negative),
    )


def control(
    sheet: Sheet,
    loaded: Node,
    image: Link,
    positive: Node,
    negative: Node,
    column: str = "Control",
    **changes: Any,
) -> Node:
    """Add the node that enlarges the photo and lets it steer the model."""
    if column:
        sheet.column(column)
    texts = {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}
    links = {"model": loaded["MODEL"], "vae": loaded["VAE"], "control": loaded["control"], "image": image}
    return sheet.add("EAM_ApplyControl", "Enlarge and control", **texts, **links | changes)


def guided(applied: Node, latent: str) -> dict[str, Link]:
    """Return a sampler's links; `latent` is its name for where it starts."""
    names = {"model": "MODEL", "positive": "positive", "negative": "negative", latent: "LATENT"}
    return {name: applied[output] for name, output in names.items()}


def tiled(sheet: Sheet, applied: Node, title: str = "Sample in tiles", **settings: Any) -> Node:
    """Add the sampler."""
    sheet.column("Restore")
    return sheet.add("EAM_TiledSampler", title, **guided(applied, "latent"), **settings)


def finish(
    sheet: Sheet,
    latent: Link,
    loaded: Node,
    photo: Link,
    prefix: str,
    *,
    colors: str = "wavelet",
    kind: str = "VAEDecode",
    title: str = "Decode",
    **decoding: Any,
) -> None:
    """Decode, fix colors, save and compare."""
    decoded = sheet.add(kind, title, samples=latent, vae=loaded["VAE"], **decoding)
    fixed = sheet.add("EAM_ColorFix", "Colors of the original", image=decoded["IMAGE"], reference=photo, method=colors)
    sheet.column("Result")
    sheet.add("EAM_Compare", "Before and after", before=photo, after=fixed["IMAGE"])
    sheet.add("SaveImage", "Restored", images=fixed["IMAGE"], filename_prefix=prefix)


WORKFLOWS: dict[str, Callable[[], Sheet]] = {
    "eam_quick_start": quick_start,
    "eam_upscale": expert,
    "eam_ksampler": ksampler,
    "eam_tiled_4k": tiled_4k,
    "eam_tile_captions": tile_captions,
    "eam_folder": folder,
    "eam_controlnet": controlnet,
    "eam_image_prompt": image_prompt,
    "dit4sr_upscale": dit4sr,
    "tsdsr_upscale": tsdsr,
}


def build(object_info: Json) -> dict[str, Json]:
    """Return all workflows by name."""
    return {name: make().workflow(object_info) for name, make in WORKFLOWS.items()}


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
            for name, workflow in build(server.object_info()).items():
                text = json.dumps(workflow, indent=2, ensure_ascii=False)
                (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    except HostError as error:
        print(f"workflows: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
