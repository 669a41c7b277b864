"""Good inputs that fuzzing starts from: small checkpoints, settings, lists, graphs and pictures, as bytes."""

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from eam_core.model.autoencoder import AutoencoderParams, PatchAutoencoder
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.dit4sr import DiT4SR, DiT4SRParams
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.tsdsr import DOWN, LORA_PREFIX, UP, student_modules

SIZES = {"depth": 1, "hidden_size": 64}
BASE = {**SIZES, "context_size": 8, "pooled_size": 8, "pos_embed_max_size": 4}


def header_of(state: Mapping[str, Tensor], **metadata: str) -> bytes:
    """Return the header that a safetensors file of these tensors has, in float16."""
    fields: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for key, value in state.items():
        end = place + 2 * value.numel()
        fields[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [place, end]}
        place = end
    return json.dumps(fields).encode()


def file_of(header: bytes, data: bytes) -> bytes:
    """Return a whole file."""
    return struct.pack("<Q", len(header)) + header + data


def networks() -> dict[str, Mapping[str, Tensor]]:
    """Return the tensors, without memory, of every kind of file that the loader tells apart."""
    with torch.device("meta"):
        autoencoder = PatchAutoencoder(
            AutoencoderParams(coarse_width=4, coarse_blocks=1, fine_width=4, fine_blocks=1, full_width=4, clean_width=4)
        )
        made: dict[str, nn.Module] = {
            "base": MMDiT(MMDiTParams(**BASE)),
            "self": ControlStream(ControlParams(**SIZES, lr_attention="self")),
            "joint": ControlStream(ControlParams(**SIZES, qk_norm=True)),
            "controlnet": ControlNet(ControlNetParams(**SIZES, num_blocks=1)),
            "dit4sr": DiT4SR(DiT4SRParams(**SIZES)),
            "autoencoder": autoencoder,
        }
        lora = {
            f"{LORA_PREFIX}{module}{end}": torch.empty(2, 64, *((2, 2) if module == "pos_embed.proj" else ()))
            for module in student_modules(1)
            for end in (DOWN, UP)
        }
    return {name: module.state_dict() for name, module in made.items()} | {"tsdsr": lora}


def headers() -> list[bytes]:
    """Return headers of good files."""
    notes = {"training": '{"null_tokens": 4}'}
    return [header_of(state, **notes) for state in networks().values()]


def checkpoints() -> list[bytes]:
    """Return whole small files."""
    tiny = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(0, 4)}
    header = header_of(tiny, format="pt")
    pickled = io.BytesIO()
    torch.save(tiny, pickled)
    return [file_of(header, bytes(14)), file_of(b"{}", b""), pickled.getvalue(), b"GGUF\x03\0\0\0" + bytes(32)]


def saved_tensors() -> list[bytes]:
    """Return files of torch.save: tensors, and something else."""
    made = []
    for value in (torch.zeros(1, 2048, dtype=torch.float16), torch.zeros(2048), {"a": torch.zeros(2)}):
        data = io.BytesIO()
        torch.save(value, data)
        made.append(data.getvalue())
    return made


def indexes() -> list[bytes]:
    """Return lists of shards."""
    names = ("x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors")
    listed = {"metadata": {"total_size": 28}, "weight_map": {"a": names[0], "b": names[1]}}
    return [json.dumps(listed).encode(), json.dumps({"weight_map": {"a": "x.safetensors"}}).encode()]


def configs() -> list[bytes]:
    """Return settings of networks as transformers and diffusers write them."""
    clip = {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "hidden_size": 768,
        "vocab_size": 49408,
    }
    vlm = {"model_type": "qwen2_5_vl", "text_config": {"num_hidden_layers": 28, "rope_theta": 1e6}, "auto_map": {}}
    vae = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256], "scaling_factor": 1.5305}
    return [json.dumps(each).encode() for each in (clip, vlm, vae)]


def manifests() -> list[bytes]:
    """Return lists of results, of a folder's pass and of a batch."""
    folder = [
        {"time": "2026-01-01T00:00:00.000+00:00", "folder": "in", "state": "started", "pictures": 3, "finished": 0},
        {"folder": "in", "state": "begun", "name": "1.png"},
        {"folder": "in", "state": "done", "name": "1.png", "seconds": 1.5, "files": ["1.png", "sub/1.png"]},
        {"folder": "other", "state": "done", "name": "2.png", "files": ["2.png"]},
        {"folder": "in", "state": "failed", "name": "3.png", "error": "no picture"},
    ]
    batch = [
        {"state": "started", "settings": {"scale": 4.0, "restore": {"steps": 8}}, "first": True, "anew": False},
        {"state": "writing", "name": "1.png", "output": "1.png", "hash": "0" * 64, "input_hash": "1" * 64},
        {"state": "done", "name": "1.png", "output": "1.png", "hash": "0" * 64, "seconds": 0.5, "worker": 0},
        {"state": "failed", "name": "2.png", "output": "2.png", "error": "no picture"},
    ]
    return ["\n".join(json.dumps(line) for line in [*lines, {}][:-1]).encode() + b"\n" for lines in (folder, batch)]


def folder_texts() -> list[bytes]:
    """Return what a workflow may write into the folder nodes."""
    plain = {"folder": "", "output_folder": "folder", "pattern": "*", "format": "as input", "suffix": ""}
    more = {"folder": "sub", "output_folder": "a/b", "pattern": "*.png;*/1.*", "format": "jpg", "suffix": "_x4"}
    away = {"folder": "../in", "output_folder": "/tmp/x", "pattern": "[!a-", "format": "png", "suffix": "../x"}
    names = {"folder": "con", "output_folder": "C:\\x\\..", "pattern": "?" * 30, "format": "webp", "suffix": "\u202e"}
    return [json.dumps(each).encode() for each in (plain, more, away, names)]


def answers() -> list[bytes]:
    """Return what a captioner may answer, bare and as an endpoint wraps it."""
    fields = {"caption": "A red bird.", "focused": True, "focal_areas": [{"name": "bird", "box": [1, 2, 900, 1000]}]}
    text = "<think>hm</think>\n```json\n" + json.dumps(fields) + ",}\n```"
    chat = {"choices": [{"message": {"content": text, "reasoning_content": ""}, "finish_reason": "stop"}]}
    kept = {"key": {}, "answer": fields}
    return [text.encode(), json.dumps(chat).encode(), json.dumps(kept).encode(), b"I cannot describe this. Sorry"]


def prompts() -> list[bytes]:
    """Return graphs as ComfyUI's page sends them."""
    folder = {"folder": "", "output_folder": "folder", "pattern": "*", "subfolders": False, "existing": "skip"}
    load = {"class_type": "EAM_LoadFolder", "inputs": folder | {"go_on": True}}
    save = {"image": ["1", 0], "item": ["1", 1], "format": "as input", "quality": 95, "suffix": "_a"}
    batch = {"1": load, "2": {"class_type": "EAM_SaveFolder", "inputs": save}}
    picture = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
    degrade = {"image": ["1", 0], "preset": "mild", "scale": 4, "seed": 0}
    caption = {"image": ["1", 0], "caption": "", "mode": "sa", "extra_instruction": "", "max_tokens": 512, "seed": 0}
    caption |= {"tile_captions": False, "scale": 4.0, "tile": 0, "overlap": 0, "captioner": ["3", 0]}
    subject = {
        "1": picture,
        "2": {"class_type": "EAM_SubjectCaption", "inputs": caption},
        "3": {"class_type": "EAM_LoadCaptioner", "inputs": {"source": "http://127.0.0.1:1/v1", "name": ""}},
    }
    model = {"class_type": "EAM_LoadModel", "inputs": {"checkpoint": "embedded (tiny, no text)", "control": "auto"}}
    upscale = {
        "1": picture,
        "4": model,
        "5": {"class_type": "EAM_Upscale", "inputs": {"image": ["1", 0], "scale": 4.0, "seed": 0, "fidelity": 0.0}},
        "6": {"class_type": "EAM_Degrade", "inputs": degrade},
        "7": {"class_type": "EAM_Compare", "inputs": {"before": ["6", 0], "after": ["5", 0]}},
        "8": {"class_type": "EAM_Report", "inputs": {"restored": ["5", 0], "original": ["6", 0], "tile": 0}},
    }
    return [json.dumps(each).encode() for each in (batch, subject, upscale)]


def pictures() -> list[bytes]:
    """Return small pictures of every format that is read, in several modes and with metadata."""
    coarse = Image.effect_noise((24, 16), 80)
    rgb = Image.merge("RGB", (coarse, coarse.rotate(180), coarse))
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "{}", zip=True)
    made = []

    def save(image: Image.Image, kind: str, **options: Any) -> None:
        data = io.BytesIO()
        image.save(data, kind, **options)
        made.append(data.getvalue())

    profile = bytes(16) + b"RGB " + bytes(16) + b"acsp" + bytes(92)
    save(rgb, "PNG", pnginfo=info, icc_profile=profile)
    save(rgb.convert("P"), "PNG", transparency=0)
    save(coarse.convert("I;16"), "PNG")
    save(rgb.convert("RGBA"), "PNG", exif=exif)
    save(rgb, "JPEG", exif=exif, icc_profile=profile)
    save(rgb.convert("CMYK"), "JPEG", progressive=True)
    save(coarse, "JPEG")
    save(rgb.convert("RGBA"), "WEBP", exif=exif)
    save(rgb, "WEBP", save_all=True, append_images=[rgb], lossless=True)
    save(rgb, "TIFF", compression="tiff_lzw")
    save(coarse.convert("F"), "TIFF")
    save(rgb.convert("1"), "TIFF", compression="group4")
    save(rgb, "BMP")
    save(rgb.convert("P"), "BMP")
    save(rgb.convert("P"), "GIF", save_all=True, append_images=[rgb.convert("P")] * 2)
    return made
