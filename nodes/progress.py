"""What a tiled run shows on its node: the growing picture, a frame around the tiles in work, counts and time left.

Nothing here touches what is sampled; with core's previews switched off only counts are shown.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import comfy.utils
import latent_preview
from comfy.model_patcher import ModelPatcher
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image, ImageDraw
from torch import Tensor

from ..eam_core.tiling import Box, TileGrid, blend_weights

Predict = Callable[[Tensor, list[Box]], Tensor]

_PREVIEW_SHARE, _PREVIEW_SECONDS = 0.02, 0.4  # most of the time that previews may take; least time between them
_TEXT_SECONDS = 0.1
_FRAME, _FRAME_EDGE = (255, 170, 0), (0, 0, 0)


class Progress:
    """Show steps and the tiles within them on the node that is running.

    A step may take several rounds over all tiles: some samplers call the model twice, and core tells of the step's end
    after the first round.
    """

    def __init__(self, model: ModelPatcher, start: Tensor):
        """Begin to count.

        Args:
            model: that samples.
            start: latents as the model reads them [B, C, H, W], shown until there is something better.
        """
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.bar = comfy.utils.ProgressBar(1)
        self.num_steps, self.step, self.num_tiles = 1, 0, 1
        self.done_in_step, self.done_before, self.done_in_round = 0.0, 0.0, 0
        self.picture: Tensor = start[:1]
        self.pictures = Throttle(_PREVIEW_SHARE, _PREVIEW_SECONDS)
        self.texts = Throttle(1.0, _TEXT_SECONDS)
        self.time_left = TimeLeft()

    def watching(self, predict: Predict, x: Tensor, grid: TileGrid, num_steps: int) -> Predict:
        """Return `predict` for one round over the tiles of x, with everything it does shown."""
        self.num_steps = num_steps
        self._begin_round(len(grid.boxes))
        growing = GrowingPicture(grid, self.picture.to(x.device)) if self.previewer and self.num_tiles > 1 else None
        done = 0

        def watched(tiles: Tensor, boxes: list[Box]) -> Tensor:
            nonlocal done
            self._begin(done, boxes, growing)
            result = predict(tiles, boxes)
            done += len(boxes)
            self.done_in_step += len(boxes)
            self.done_in_round = done % self.num_tiles
            if growing is not None:
                growing.add(boxes, result)
                if done == self.num_tiles:
                    self.picture = growing.latents()
            self.time_left.note(self.done_before + self.done_in_step)
            self._show(self.step * self.num_tiles + min(done, self.num_tiles))
            return result

        return watched

    def on_step(self, step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
        """Note the end of a step and show where it leads."""
        self.step, self.picture = step + 1, denoised[:1]
        self.done_before, self.done_in_step = self.done_before + self.done_in_step, 0
        preview = None
        # Between steps the next one's first tile shows the same, with its frame.
        if self.previewer and (self.step == self.num_steps or (self.num_tiles == 1 and self.pictures.due())):
            preview = self.pictures.spend(lambda: self._decode(self.picture))
        self._show(self.step * self.num_tiles, preview)

    def finish(self) -> None:
        """Say what was done, in the place of what is left."""
        tiles = f"{self.num_tiles} tiles, " if self.num_tiles > 1 else ""
        steps = "1 step" if self.num_steps == 1 else f"{self.num_steps} steps"
        send_text(f"{tiles}{steps} in {as_time(self.time_left.passed())}")

    def _begin_round(self, num_tiles: int) -> None:
        """Forget what a round did that broke off; where tiles got smaller, count all in the new ones."""
        ratio = num_tiles / self.num_tiles
        self.done_in_step = (self.done_in_step - self.done_in_round) * ratio
        self.done_before *= ratio
        self.time_left.scale(ratio)
        self.num_tiles, self.done_in_round = num_tiles, 0

    def _begin(self, done: int, boxes: list[Box], growing: "GrowingPicture | None") -> None:
        if self.texts.due():
            self.texts.spend(lambda: send_text(self._text(done + len(boxes))))
        if growing is not None and self.pictures.due():
            preview = self.pictures.spend(lambda: framed(self._decode(growing.latents()), boxes, growing.size))
            self._show(self.step * self.num_tiles + done, preview)

    def _text(self, tile: int) -> str:
        parts = [f"tile {tile}/{self.num_tiles}"] if self.num_tiles > 1 else []
        parts.append(f"step {min(self.step + 1, self.num_steps)}/{self.num_steps}")
        rounds = max(1.0, self.done_before / (self.step * self.num_tiles) if self.step else 1.0)
        remaining = (self.num_steps - self.step) * self.num_tiles * rounds - self.done_in_step
        left = self.time_left.estimate(max(remaining, 1))
        return ", ".join(parts if left is None else [*parts, f"{as_time(left)} left"])

    def _decode(self, latents: Tensor) -> Any:
        return self.previewer.decode_latent_to_preview_image("JPEG", latents)

    def _show(self, value: int, preview: Any = None) -> None:
        total = self.num_steps * self.num_tiles
        # A second round in a step must not run the bar backwards, nor must steps with other tiles.
        value = max(value, int(self.bar.current * total // self.bar.total))
        self.bar.update_absolute(value, total, preview)


class GrowingPicture:
    """Latents of a picture in which tile after tile takes the place of what was there before.

    Weights are those of the final blend and sum to one, so that after the last tile it is the blend.
    """

    def __init__(self, grid: TileGrid, before: Tensor):
        """Start from latents [1, C, H, W]."""
        rows, columns = blend_weights(grid)
        self.weights = dict(zip(grid.boxes, [(row, column) for row in rows for column in columns], strict=True))
        self.size = (grid.height, grid.width)
        self.before = self.now = before.float()
        self.waiting: list[tuple[Box, Tensor]] = []

    def add(self, boxes: list[Box], results: Tensor) -> None:
        """Take finished tiles, stacked tile-major along the batch axis; of a batch the first picture counts."""
        parts = results.split(len(results) // len(boxes))
        self.waiting += [(box, part[:1]) for box, part in zip(boxes, parts, strict=True)]

    def latents(self) -> Tensor:
        """Return the picture so far; tiles are blended in only when somebody looks."""
        if self.waiting and self.now is self.before:
            self.now = self.before.clone()
        for box, part in self.waiting:
            top, left, height, width = box
            row, column = self.weights[box]
            place = (..., slice(top, top + height), slice(left, left + width))
            weight = (row[:, None] * column).to(self.now.device)
            self.now[place] += weight * (part.to(self.now) - self.before[place])
        self.waiting = []
        return self.now


class Throttle:
    """Lets something happen as often as it may: a share of the time at most, and not too often."""

    def __init__(self, share: float, seconds: float):
        """Keep the share of the time in (0, 1] and the least seconds from one time to the next."""
        self.share, self.seconds, self.next = share, seconds, 0.0

    def due(self) -> bool:
        """Tell whether it may happen now."""
        return time.monotonic() >= self.next

    def spend(self, do: Callable[[], Any]) -> Any:
        """Do it, and wait the longer for the next time the longer it took."""
        began = time.monotonic()
        result = do()
        ended = time.monotonic()
        self.next = max(began + self.seconds, ended + (ended - began) / self.share)
        return result


class TimeLeft:
    """Estimates from finished tiles how long others take; the first, which warms up, counts only while it is alone."""

    def __init__(self) -> None:
        self.began = self.first_time = self.last_time = time.monotonic()
        self.first_count = self.last_count = 0.0

    def scale(self, ratio: float) -> None:
        """Count in tiles of another size: so many new ones take the place of one."""
        self.first_count, self.last_count = self.first_count * ratio, self.last_count * ratio

    def note(self, count: float) -> None:
        """Note that `count` tiles are finished since the beginning."""
        self.last_time, self.last_count = time.monotonic(), count
        if not self.first_count:
            self.first_time, self.first_count = self.last_time, count

    def estimate(self, remaining: float) -> float | None:
        """Return the seconds that `remaining` more tiles take; None before the first is finished."""
        if not self.first_count:
            return None
        if self.last_count > self.first_count:
            each = (self.last_time - self.first_time) / (self.last_count - self.first_count)
        else:
            each = (self.first_time - self.began) / self.first_count
        return each * remaining

    def passed(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.began


def as_time(seconds: float) -> str:
    """Write a duration as people do: 12 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def framed(preview: Any, boxes: list[Box], size: tuple[int, int]) -> Any:
    """Draw frames around tiles into a preview as core passes it on: (format, picture, longest side or None).

    The picture is brought to its final size first, so that frames are thin and sharp. What another pack's previewer
    gives instead is returned as it is.

    Args:
        preview: of the whole picture.
        boxes: of the tiles.
        size: height and width of the whole picture, in the boxes' units.
    """
    if not (isinstance(preview, tuple) and len(preview) == 3 and isinstance(preview[1], Image.Image)):
        return preview
    kind, picture, longest = preview
    if longest and longest != max(picture.size):
        factor = longest / max(picture.size)
        sides = [max(1, round(side * factor)) for side in picture.size]
        picture = picture.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    across, down = picture.width / size[1], picture.height / size[0]
    draw = ImageDraw.Draw(picture)
    for top, left, height, width in boxes:
        corners = [left * across, top * down, (left + width) * across - 1, (top + height) * down - 1]
        x0, y0, x1, y1 = (round(corner) for corner in corners)
        draw.rectangle((x0, y0, x1, y1), outline=_FRAME_EDGE, width=4)
        draw.rectangle((x0, y0, x1, y1), outline=_FRAME, width=3)
    return kind, picture, longest


def send_text(text: str) -> None:
    """Write a line on the node that is running, where the host can."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    context = get_executing_context()
    if context is None or not hasattr(server, "send_progress_text"):
        return
    try:
        # Nodes that another one put in its place are not on the page; that one is.
        node = get_progress_state().dynprompt.get_display_node_id(context.node_id)
        server.send_progress_text(text, node, server.client_id)
    except Exception as error:  # a host that changed this must not cost a picture
        logging.debug(f"EAM: cannot show progress as text: {error}")
