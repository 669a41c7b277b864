"""What the pictures of the help pages show: per node a small graph with its values, and the photos in it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comfy_host import REPO
from PIL import Image

PHOTO = REPO / "eam_core" / "assets" / "sample_lr.png"
INPUT, CLEAN, CAST = "photo.png", "clean_photo.png", "restored_photo.png"
FAR = (-4000, 0)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a scene; a height of 0 is what its widgets need."""

    type: str
    at: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A graph and the part of it that the picture shows.

    Attributes:
        nodes: by a name of their own.
        links: (from, output, to, input).
        shown: names of the nodes in the picture.
        run: run the graph first.
        after: JavaScript to evaluate at the end; `made` holds the nodes by name.
        pixels: of the picture for each of the page's.
    """

    nodes: dict[str, Node]
    shown: list[str]
    links: list[tuple[str, int, str, str]] = field(default_factory=list)
    run: bool = False
    after: list[str] = field(default_factory=list)
    pixels: float = 2.0

    def as_dict(self) -> dict[str, Any]:
        """Return what the page's script reads."""
        return asdict(self)


def pictures_for(folder: Path) -> list[Path]:
    """Write the photos that the scenes load.

    They are the bundled photo; a clean one of more pixels; and one with a yellow cast, as a restoration may have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photo = Image.open(PHOTO).convert("RGB")
    photo.save(folder / INPUT)
    large = photo.resize((4 * photo.width, 4 * photo.height), Image.Resampling.LANCZOS)
    large.save(folder / CLEAN)
    red, green, blue = large.split()
    cast = (
        red.point(lambda v: min(255, v + 28)),
        green.point(lambda v: min(255, v + 14)),
        blue.point(lambda v: v // 2),
    )
    Image.merge("RGB", cast).save(folder / CAST)
    return [folder / name for name in (INPUT, CLEAN, CAST)]


def alone(kind: str, width: int, **values: Any) -> Scene:
    """Return a scene of one node with values of its widgets."""
    return Scene(nodes={"node": Node(type=kind, size=(width, 0), values=values)}, shown=["node"])


def load(name: str, at: tuple[int, int]) -> Node:
    """Return a node that loads one of the photos."""
    return Node(type="LoadImage", at=at, size=(230, 290), values={"image": name})


CAPTION = "The seed head of a dandelion in warm evening light, its fine threads and dark seeds close up."


def restoration(
    kind: str, size: tuple[int, int], links: list[tuple[str, int, str, str]], seed: int = 0, pixels: float = 2.0
) -> Scene:
    """Return a scene of one node behind a restoration by the embedded model, which lies out of sight.

    Another seed keeps ComfyUI from answering with what it did for another picture.
    """
    kinds = {
        "model": "EAM_LoadModel",
        "prompt": "CLIPTextEncode",
        "apply": "EAM_ApplyControl",
        "sampler": "EAM_TiledSampler",
        "decoded": "VAEDecode",
    }
    hidden = {name: Node(type=one, at=FAR) for name, one in kinds.items()}
    hidden["sampler"] = Node(type="EAM_TiledSampler", at=FAR, values={"seed": seed, "control_after_generate": "fixed"})
    return Scene(
        nodes={"photo": load(INPUT, FAR), **hidden, "node": Node(type=kind, size=size)},
        links=[
            ("model", 1, "prompt", "clip"),
            ("model", 0, "apply", "model"),
            ("prompt", 0, "apply", "positive"),
            ("prompt", 0, "apply", "negative"),
            ("model", 2, "apply", "vae"),
            ("model", 3, "apply", "control"),
            ("photo", 0, "apply", "image"),
            *(
                ("apply", index, "sampler", name)
                for index, name in enumerate(("model", "positive", "negative", "latent"))
            ),
            ("sampler", 0, "decoded", "samples"),
            ("model", 2, "decoded", "vae"),
            *links,
        ],
        shown=["node"],
        run=True,
        pixels=pixels,
    )


SCENES: dict[str, Scene] = {
    "EAM_Upscale": Scene(
        nodes={
            "photo": load(INPUT, FAR),
            "node": Node(type="EAM_Upscale", size=(300, 0)),
            "result": Node(type="PreviewImage", at=(360, 0), size=(230, 290)),
        },
        links=[("photo", 0, "node", "image"), ("node", 0, "result", "images")],
        shown=["node", "result"],
        run=True,
        pixels=1.25,
    ),
    "EAM_LoadModel": alone("EAM_LoadModel", 330),
    "EAM_ControlPrompt": alone("EAM_ControlPrompt", 250),
    "EAM_ControlSettings": alone("EAM_ControlSettings", 280),
    "EAM_ApplyControl": alone("EAM_ApplyControl", 300),
    "EAM_ImagePrompt": alone("EAM_ImagePrompt", 290),
    "EAM_LoadCaptioner": alone("EAM_LoadCaptioner", 360, source="LLM/MiniCPM-V-4.6"),
    "EAM_SubjectCaption": Scene(
        nodes={
            "photo": load(INPUT, FAR),
            "node": Node(type="EAM_SubjectCaption", size=(380, 520), values={"caption": CAPTION}),
        },
        links=[("photo", 0, "node", "image")],
        shown=["node"],
        run=True,
    ),
    "EAM_EncodeTileCaptions": alone("EAM_EncodeTileCaptions", 280),
    "EAM_TiledSampler": alone("EAM_TiledSampler", 310),
    "EAM_ColorFix": Scene(
        nodes={
            "restored": load(CAST, (0, 0)),
            "original": load(INPUT, (0, 370)),
            "node": Node(type="EAM_ColorFix", at=(290, 0), size=(260, 0)),
            "result": Node(type="PreviewImage", at=(320, 370), size=(230, 290)),
        },
        links=[("restored", 0, "node", "image"), ("original", 0, "node", "reference"), ("node", 0, "result", "images")],
        shown=["restored", "original", "node", "result"],
        run=True,
        pixels=1.0,
    ),
    "EAM_Degrade": Scene(
        nodes={
            "photo": load(CLEAN, (0, 0)),
            "node": Node(
                type="EAM_Degrade",
                at=(290, 0),
                size=(260, 0),
                values={"blur": 2.0, "noise": 8.0, "jpeg_quality": 60, "control_after_generate": "fixed"},
            ),
            "result": Node(type="PreviewImage", at=(320, 300), size=(230, 290)),
        },
        links=[("photo", 0, "node", "image"), ("node", 0, "result", "images")],
        shown=["photo", "node", "result"],
        run=True,
        pixels=1.0,
    ),
    "EAM_Compare": restoration(
        "EAM_Compare", (400, 460), [("photo", 0, "node", "before"), ("decoded", 0, "node", "after")], pixels=1.5
    ),
    "EAM_Report": restoration(
        "EAM_Report",
        (440, 300),
        [("decoded", 0, "node", "restored"), ("photo", 0, "node", "original"), ("apply", 0, "node", "model")],
        seed=1,
    ),
    "EAM_LoadFolder": alone("EAM_LoadFolder", 330, folder="holiday", output_folder="holiday_x4", pattern="*.jpg;*.png"),
    "EAM_SaveFolder": alone("EAM_SaveFolder", 280),
}
