"""The graph that EAM_Upscale puts in its own place: the pack's expert nodes and core's, with every setting decided.

Inputs go on as the links that they came by wherever that is possible, so that core finds what it has computed before.
"""

from dataclasses import dataclass, fields
from typing import Any

from comfy_execution.graph_utils import GraphBuilder, is_link
from torch import Tensor

import nodes as host_nodes

from ..eam_core.errors import CheckpointError
from ..eam_core.images import check_size
from ..eam_core.presets import EMBEDDED, SD3, Spec
from ..eam_core.start import latent_aligned
from .embedded import EmbeddedLatentFormat
from .types import AUTO, EMBEDDED_CHOICE

_PARTS = ("model", "clip", "vae", "control")
_WHOLE_PIXELS = 2048 * 2048  # larger results are decoded in tiles
_WHOLE_PIXELS_EMBEDDED = 4096 * 4096  # its decoder needs little memory, and is slower in tiles
_DECODE = {"tile_size": 1024, "overlap": 128, "temporal_size": 64, "temporal_overlap": 8}
_CAPTION = {
    "caption": "",
    "mode": "sa",
    "extra_instruction": "",
    "max_tokens": 512,
    "seed": 0,
    "tile_captions": False,
    "scale": 4.0,
    "tile": 0,
    "overlap": 0,
}  # EAM_SubjectCaption's defaults; the caption does not hang on how the photo is enlarged


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The node's widgets and the values of its sockets; 0, "auto" and None leave the choice to the control."""

    scale: float = 4.0
    fidelity: float = 0.0
    caption: str = ""
    seed: int = 0
    model: Any = None
    clip: Any = None
    vae: Any = None
    control: Any = None
    negative: str = ""
    steps: int = 0
    cfg: float = 0.0
    sampler_name: str = AUTO
    scheduler: str = AUTO
    start_sigma: float = 0.0
    control_scale: float = 1.0
    tile: int = 0
    overlap: int = 0
    tile_batch: int = 0
    color_fix: str = AUTO
    encoder_noise: float = 1.0

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> "Settings":
        """Take what the node was given; an optional input that is left out keeps its default."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in inputs.items() if name in known and value is not None})

    def spec(self) -> Spec:
        """Return the settings of the control's authors.

        Raises:
            CheckpointError: some of model, clip, vae and control are there and others are missing.
        """
        given = [name for name in _PARTS if getattr(self, name) is not None]
        if not given:
            return EMBEDDED
        own_text = self.control is not None and self.control.spec.fixed_prompt
        missing = [name for name in _PARTS if name not in given and not (name == "clip" and own_text)]
        if missing:
            raise CheckpointError(
                f"expected model, clip, vae and control together or none of them, got {_list(given)} without "
                f"{_list(missing)}; connect {_list(missing)} (EAM Load Model and core's loaders give them), or nothing "
                "for the embedded model"
            )
        spec = self.control.spec
        # The embedded control is of the family that SD3's are of; its base tells them apart.
        own_base = isinstance(getattr(self.model.model, "latent_format", None), EmbeddedLatentFormat)
        return EMBEDDED if spec is SD3 and own_base else spec

    def sampling(self, spec: Spec) -> dict[str, Any]:
        """Return the settings of EAM_TiledSampler."""
        return {
            "seed": self.seed,
            "steps": self.steps or spec.steps,
            "cfg": self.cfg or spec.cfg_scale,
            "sampler_name": spec.sampler if self.sampler_name == AUTO else self.sampler_name,
            "scheduler": spec.scheduler if self.scheduler == AUTO else self.scheduler,
            "start_sigma": self.start_sigma or spec.sigma_start,
            "fidelity": self.fidelity,
            "tile": self.tile,
            "overlap": self.overlap,
            "tile_batch": self.tile_batch,
        }


class Links:
    """The links by which a node's inputs came."""

    def __init__(self, dynprompt: Any, node_id: str):
        """Look the node up in the prompt that is running."""
        self.dynprompt, self.inputs = dynprompt, dynprompt.get_node(node_id)["inputs"]

    def linked(self, name: str) -> Any:
        """Return an input's link; None for one that is not connected."""
        return self.inputs[name] if is_link(self.inputs.get(name)) else None

    def pass_on(self, name: str, value: Any) -> Any:
        """Return what gives a node in this one's place an input: its link, or its value where core runs over a list."""
        link = self.linked(name)
        return value if link is None or self._is_list(link) else link

    def _is_list(self, link: list[Any]) -> bool:
        """Tell whether a link may carry several values, of which the node gets one at a time."""
        waiting, seen = [link], set()
        while waiting:
            node_id, slot = waiting.pop()
            node = self.dynprompt.get_node(node_id)
            kind = host_nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
            if any(getattr(kind, "OUTPUT_IS_LIST", None) or ()) and kind.OUTPUT_IS_LIST[slot]:
                return True
            if node_id not in seen and not getattr(kind, "INPUT_IS_LIST", False):
                waiting += [value for value in node["inputs"].values() if is_link(value)]
            seen.add(node_id)
        return False


def expand(image: Tensor, links: Links, settings: Settings) -> tuple[dict[str, Any], list[Any], Any, Any]:
    """Build the graph.

    Args:
        image: IMAGE [B, H, W, C].
        links: of the node's inputs.
        settings: all others.

    Returns:
        The graph, a link to its picture, the caption or a link to it, and a link to the model with the control.

    Raises:
        CheckpointError: model, clip, vae and control are not complete.
        ImageError: the picture or its result is too small or too large.
    """
    spec = settings.spec()
    height, width = image.shape[1:3]
    check_size(height, width, settings.scale, "the image")
    graph, photo = GraphBuilder(), links.pass_on("image", image)
    parts = _parts(graph, links, settings)
    caption, positive, negative = _text(graph, links, settings, spec, photo, parts)
    applied = graph.node(
        "EAM_ApplyControl",
        "control",
        model=parts["model"],
        positive=positive,
        negative=negative,
        vae=parts["vae"],
        control=parts["control"],
        image=photo,
        scale=settings.scale,
        control_scale=settings.control_scale,
        start=0.0,
        end=1.0,
        encoder_noise=settings.encoder_noise,
    )
    names = ("model", "positive", "negative", "latent")
    sampled = graph.node(
        "EAM_TiledSampler",
        "sampler",
        **{name: applied.out(slot) for slot, name in enumerate(names)},
        **settings.sampling(spec),
    )
    pixels = latent_aligned(height, settings.scale) * latent_aligned(width, settings.scale)
    large = pixels > (_WHOLE_PIXELS_EMBEDDED if spec is EMBEDDED else _WHOLE_PIXELS)
    kind, tiles = ("VAEDecodeTiled", _DECODE) if large else ("VAEDecode", {})
    decoded = graph.node(kind, "decode", samples=sampled.out(0), vae=parts["vae"], **tiles)
    method = spec.color_fix if settings.color_fix == AUTO else settings.color_fix
    fixed = graph.node("EAM_ColorFix", "colors", image=decoded.out(0), reference=photo, method=method)
    return graph.finalize(), fixed.out(0), caption, applied.out(0)


def _parts(graph: GraphBuilder, links: Links, settings: Settings) -> dict[str, Any]:
    """Return links to model, clip, vae and control: the node's own, or of the embedded model."""
    if settings.model is None:
        loaded = graph.node("EAM_LoadModel", "load", checkpoint=EMBEDDED_CHOICE, control=AUTO)
        return {name: loaded.out(slot) for slot, name in enumerate(_PARTS)}
    given = {name: getattr(settings, name) for name in _PARTS}
    return {name: links.pass_on(name, value) for name, value in given.items() if value is not None}


def _text(
    graph: GraphBuilder, links: Links, settings: Settings, spec: Spec, photo: Any, parts: dict[str, Any]
) -> tuple[Any, list[Any], list[Any]]:
    """Return the caption and links to positive and negative conditioning."""
    if spec.fixed_prompt:
        clip = {"clip": parts["clip"]} if "clip" in parts else {}
        prompt = graph.node("EAM_ControlPrompt", "prompt", control=parts["control"], **clip)
        return prompt.out(1), prompt.out(0), prompt.out(0)
    caption, captioner = settings.caption, links.linked("captioner")
    if captioner is not None and not caption.strip():
        caption = graph.node("EAM_SubjectCaption", "caption", image=photo, captioner=captioner, **_CAPTION).out(0)
    positive, negative = (
        graph.node("CLIPTextEncode", side, text=text, clip=parts["clip"]).out(0)
        for side, text in (("positive", caption), ("negative", settings.negative))
    )
    return caption, positive, negative


def _list(names: list[str]) -> str:
    """Write names as people do: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
