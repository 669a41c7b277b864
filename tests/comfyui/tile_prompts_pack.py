"""Nodes that tile_prompts_graph.py puts into its ComfyUI: core's own CLIP around a stand-in, and what tests look at.

The stand-in gives each text random tokens, as many as it has words.
"""

import json
import zlib
from types import SimpleNamespace

import comfy.sd
import torch
from comfy.supported_models_base import ClipTarget

from eam_core.captioning.caption import Caption
from eam_core.captioning.captioner import TileCaption


class Tokenizer:
    def __init__(self, **_):
        pass

    def tokenize_with_weights(self, text, return_word_ids=False, **_):
        return {"words": text.split()}


class Encoder(torch.nn.Module):
    dtypes = (torch.float32,)
    num_texts = 0

    def __init__(self, width, **_):
        super().__init__()
        self.width = width

    def encode_token_weights(self, tokens):
        Encoder.num_texts += 1
        words = tokens["words"]
        generator = torch.Generator().manual_seed(zlib.crc32(" ".join(words).encode()))
        context = torch.randn(1, max(len(words), 1), self.width, generator=generator)
        return context, torch.randn(1, 64, generator=generator)

    def set_clip_options(self, options):
        pass

    def reset_clip_options(self):
        pass


class Node:
    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: (kind, {}) for name, kind in cls.INPUTS.items()}}


class TextCLIP(Node):
    INPUTS, RETURN_TYPES = {"width": "INT"}, ("CLIP",)

    def run(self, width):
        target = ClipTarget(Tokenizer, Encoder)
        target.params = {"width": width}
        return (comfy.sd.CLIP(target),)


class NoCLIP(Node):
    INPUTS, RETURN_TYPES = {}, ("CLIP",)

    def run(self):
        return (None,)


class TileCaptions(Node):
    INPUTS, RETURN_TYPES = {"tiles": "STRING"}, ("EAM_TILE_CAPTIONS",)

    def run(self, tiles):
        return ([TileCaption(tuple(box), Caption(text)) for box, text in json.loads(tiles)],)


class Watched(Node):
    INPUTS, RETURN_TYPES = {"model": "MODEL", "log": "STRING"}, ("MODEL",)

    def run(self, model, log):
        def wrapper(apply_model, args):
            given = args["c"]
            seen = {"tiles": len(args["input"]), "tokens": given["c_crossattn"].shape[1], "conds": sorted(given)}
            with open(log, "a") as file:
                print(json.dumps(seen), file=file)
            return apply_model(args["input"], args["timestep"], **given)

        watched = model.clone()
        watched.set_model_unet_function_wrapper(wrapper)
        return (watched,)


class Seen(Node):
    INPUTS, RETURN_TYPES = {"size": "INT", "seed": "INT"}, ("CLIP_VISION_OUTPUT",)

    def run(self, size, seed):
        return (SimpleNamespace(last_hidden_state=torch.randn(1, 5, size, generator=torch.manual_seed(seed))),)


class Scheduled(Node):
    INPUTS, RETURN_TYPES = {"early": "CONDITIONING", "late": "CONDITIONING"}, ("EAM_TILE_CONDITIONING",)

    def run(self, early, late):
        halves = ((early, 0.0, 0.5), (late, 0.5, 1.0))
        parts = [
            (text, {**extra, "clip_start_percent": start, "clip_end_percent": end})
            for [(text, extra)], start, end in halves
        ]
        return ([((0.0, 0.0, 1.0, 1.0), parts)],)


class Objects(Node):
    INPUTS, RETURN_TYPES, OUTPUT_NODE = {"tiles": "EAM_TILE_CONDITIONING"}, (), True

    def run(self, tiles):
        found = {"boxes": [list(box) for box, _ in tiles], "shared": [id(conds) for _, conds in tiles]}
        found["tokens"] = [conds[0][0].shape[1] for _, conds in tiles]
        return {"ui": {"found": [{**found, "encoded": Encoder.num_texts}]}}


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in Node.__subclasses__()}
