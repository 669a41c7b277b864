"""Nodes that take a folder of pictures through a graph, one picture for each run."""

import uuid
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .types import FolderItemType, advanced, schema


class LoadFolder(io.ComfyNode):
    """EAM_LoadFolder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            node_id="EAM_LoadFolder",
            display_name="EAM Load Folder",
            description="Takes a folder through the graph: the next picture with each run, until all are finished. "
            "Connect item to EAM Save Folder, which keeps the names. A run that is queued later goes on where the "
            "last one stopped; a picture that cannot be read or fails is listed and left out.",
            search_aliases=[
                "batch folder",
                "load images from folder",
                "load image batch",
                "directory",
                "image list from dir",
                "bulk upscale",
            ],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder of the pictures inside ComfyUI's input folder; empty for the input folder itself. "
                    "Others only where the server's owner lists them in the environment variable EAM_FOLDERS.",
                ),
                io.String.Input(
                    "output_folder",
                    default="folder",
                    tooltip="Folder for the results inside ComfyUI's output folder; made if missing. It also gets "
                    "eam_folder.jsonl, a list of what became of each picture.",
                ),
                io.String.Input(
                    "pattern",
                    default="*",
                    tooltip="Which pictures: globs separated by ;, such as *.jpg;*.png. One with a / is held against "
                    "the path inside the folder.",
                ),
                io.Boolean.Input("subfolders", default=False, tooltip="Look into subfolders too; results keep them."),
                io.Combo.Input(
                    "existing",
                    options=["skip", "overwrite"],
                    default="skip",
                    tooltip="Pictures whose results exist: skip leaves them out, so that a folder goes on where it "
                    "stopped; overwrite makes them again, from the first picture on.",
                ),
                io.Boolean.Input(
                    "go_on",
                    default=True,
                    tooltip="Queue the next picture by itself, on the server, with the same settings and seed, until "
                    "all are finished; Cancel stops. Off: one picture for each run that you queue.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="One picture."),
                FolderItemType.Output(
                    display_name="item", tooltip="The picture's place in the folder; for EAM Save Folder."
                ),
                io.String.Output(display_name="name", tooltip="The picture's path inside the folder."),
                io.Mask.Output(tooltip="1 where the picture is transparent, as Load Image gives it."),
                io.Int.Output(display_name="index", tooltip="Number of the picture in the folder, from 1."),
                io.Int.Output(display_name="count", tooltip="How many pictures there are."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Never answer the same: each run takes another picture."""
        return uuid.uuid4().hex

    @classmethod
    def execute(
        cls, folder: str, output_folder: str, pattern: str, subfolders: bool, existing: str, go_on: bool
    ) -> io.NodeOutput:
        """Take the next picture; without one, end the run quietly."""
        from .folder_files import batch_settings, to_image
        from .folder_queue import show_text
        from .folder_runs import RUNS, find_savers, graph_mark, nothing

        node_id = str(cls.hidden.unique_id)
        rules = {"pattern": pattern, "subfolders": subfolders, "overwrite": existing == "overwrite"}
        settings = batch_settings(folder, output_folder, find_savers(cls.hidden.prompt, node_id), **rules)
        step = RUNS.step(settings, node_id, go_on, graph_mark(cls.hidden.prompt))
        show_text(node_id, step.text)
        if step.picture is None or step.item is None:
            return io.NodeOutput(*nothing(6), ui={"text": [step.text]})
        image, mask = to_image(step.picture)
        name, positions = step.item.work.name, step.item.batch.positions
        outputs = (image, step.item, name, mask, positions[name], len(positions))
        return io.NodeOutput(*outputs, ui={"text": [step.text]})


class SaveFolder(io.ComfyNode):
    """EAM_SaveFolder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            node_id="EAM_SaveFolder",
            display_name="EAM Save Folder",
            description="Saves a result under its picture's name in the output folder of EAM Load Folder, whole or not "
            "at all, with prompt, settings, seed and workflow inside. Of a batch, the first keeps the name and the "
            "others get _2, _3, ...; a fourth channel becomes transparency, which JPEG fills with white.",
            search_aliases=[
                "batch folder",
                "save images to folder",
                "save image keep name",
                "directory",
                "bulk save",
                "save with filename",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The result for this picture."),
                FolderItemType.Input("item", tooltip="From EAM Load Folder, directly."),
                io.Combo.Input(
                    "format",
                    options=["as input", "png", "jpg", "webp"],
                    default="as input",
                    socketless=True,
                    tooltip="as input: the format that the picture came in; TIFF, BMP and GIF become PNG.",
                ),
                advanced(
                    io.Int.Input("quality", default=95, min=1, max=100, tooltip="Of JPEG and WebP; 100 is the best.")
                ),
                advanced(
                    io.String.Input(
                        "suffix",
                        default="",
                        optional=True,
                        socketless=True,
                        tooltip="Added to the name before its ending, such as _x4. Two nodes that save in the same "
                        "format need different ones.",
                    )
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, image: Tensor, item: Any, format: str, quality: int, suffix: str = "") -> io.NodeOutput:
        """Write the files, and show the first one and how far the folder is."""
        from .folder_files import encoder_options, preview, saved_text, to_pictures
        from .folder_queue import show_text
        from .folder_runs import planned_ending

        key = str(cls.hidden.unique_id)
        ending = planned_ending(item, key)
        batch, work = item.batch, item.work
        options, left_out = encoder_options(ending, quality, cls.hidden, work.name)
        saved = batch.save(work, key, to_pictures(image, work.icc_profile), options)
        text = saved_text(item, key, saved, left_out)
        show_text(key, text)
        images = preview(batch.settings.output / work.targets[key])
        return io.NodeOutput(ui={"text": [text], "images": images})
