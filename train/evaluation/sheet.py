"""Picture sheets of an evaluation: crops of every method side by side, and a method's best and worst pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eam_core.errors import ImageError
from eam_core.images import load_image
from train.evaluation.pictures import Pictures
from train.evaluation.scores import Scores

CELL = 256
# Results are shown at twice their size; pictures below four crops' width give up a fourth of their short edge.
CROP = 128
CAPTION = 24
GAP = 6
ROWS = 4
EXTREMES = 5
_BACKGROUND, _INK, _BOX = (255, 255, 255), (20, 20, 20), (230, 30, 30)


class Cell(NamedTuple):
    """A picture and the words under it."""

    picture: Image.Image
    caption: str


def comparison_sheet(pictures: Pictures, names: Sequence[str] = ()) -> Image.Image:
    """Show crops in the manner of EAM's Figure 3: a row per picture, from the whole input to the original.

    The crop lies where the original, or without one the first result, has the steepest gradients. It is enlarged
    without smoothing.

    Args:
        pictures: what was scored.
        names: pictures to show; none for four spread evenly over the set.

    Returns:
        RGB sheet: the whole input with a box (the first result without inputs), the crop of the input, of every
        method and of the original.

    Raises:
        ImageError: a name is not in the set.
    """
    unknown = [name for name in names if name not in pictures.images]
    if unknown:
        raise ImageError(f"--sheet-images: expected names of pictures such as {pictures.images[0]}, got {unknown[0]}.")
    spread = np.linspace(0, len(pictures.images) - 1, min(ROWS, len(pictures.images))).round().astype(int)
    return _grid([_row(pictures, name) for name in names or [pictures.images[i] for i in spread]])


def extremes_sheet(pictures: Pictures, scores: Scores, metric: str) -> Image.Image:
    """Show the first method's five best pictures on the left and its five worst on the right, whole.

    Args:
        pictures: what was scored.
        scores: its scores.
        metric: name of the metric that decides.

    Returns:
        RGB sheet: a column per picture, best first and worst last; input, every method with its score, original.
    """
    loaded = next(loaded for loaded in scores.metrics if loaded.metric.name == metric)
    own = scores.of(scores.methods[0], metric)
    order = np.argsort(own if loaded.metric.lower_is_better else -own, kind="stable")
    order = order[np.isfinite(own[order])]
    if len(order) == 0:
        raise ImageError(f"--extremes: expected scores by {metric} of {scores.methods[0]}, got none.")
    count = min(EXTREMES, max(1, len(order) // 2))
    chosen = list(order) if len(order) < 2 else [*order[:count], *order[-count:]]
    columns = []
    for index in chosen:
        image = pictures.images[index]
        cells = [Cell(_whole(pictures.lr[image]), f"LR {image}")] if pictures.lr else []
        for method in scores.methods:
            score = scores.of(method, metric)[index]
            cells.append(Cell(_whole(pictures.sr[method][image]), f"{method} {score:.{loaded.metric.decimals}f}"))
        columns.append(cells + ([Cell(_whole(pictures.hr[image]), "HR")] if pictures.hr else []))
    # Twice the gap parts best from worst.
    return _grid(list(zip(*columns)), part=count if len(chosen) > 1 else None)


def detailed_crop(image: Image.Image, edge: int) -> tuple[int, int]:
    """Find the square with the most detail: left and top of the greatest sum of gradients, on a grid of quarters."""
    luma = np.asarray(image.convert("L"), dtype=np.float64)
    steps = np.abs(np.diff(luma, axis=0))[:, :-1] + np.abs(np.diff(luma, axis=1))[:-1]
    sums = np.pad(steps, ((1, 1), (1, 1))).cumsum(axis=0).cumsum(axis=1)
    tops, lefts = (range(0, size - edge + 1, max(1, edge // 4)) for size in luma.shape)
    corners = (
        (sums[t + edge - 1, x + edge - 1] - sums[t, x + edge - 1] - sums[t + edge - 1, x] + sums[t, x], t, x)
        for t in tops
        for x in lefts
    )
    _, top, left = max(corners, key=lambda corner: corner[0])
    return left, top


def _row(pictures: Pictures, image: str) -> list[Cell]:
    results = {method: _open(of_method[image]) for method, of_method in pictures.sr.items()}
    first = next(iter(results.values()))
    hr = _open(pictures.hr[image]) if pictures.hr else None
    lr = _open(pictures.lr[image]) if pictures.lr else None
    edge = min(CROP, min(first.size) // 4)
    left, top = detailed_crop(hr or first, edge)
    box = (left, top, left + edge, top + edge)
    whole = lr or first
    # The same place in a picture of another size.
    ratio = whole.width / first.width
    lr_box = tuple(side * ratio for side in box)
    cells = [Cell(_fit(whole, mark=lr_box), image)]
    if lr:
        cells.append(Cell(_enlarge(lr, lr_box), "LR"))
    cells += [Cell(_enlarge(result, box), method) for method, result in results.items()]
    return cells + ([Cell(_enlarge(hr, box), "HR")] if hr else [])


def _open(path: Path) -> Image.Image:
    levels = load_image(path).rgb[0].mul(255).round().byte().permute(1, 2, 0)
    return Image.fromarray(levels.numpy())


def _enlarge(image: Image.Image, box: tuple[float, ...]) -> Image.Image:
    return image.resize((CELL, CELL), Image.Resampling.NEAREST, box=box)


def _whole(path: Path) -> Image.Image:
    return _fit(_open(path))


def _fit(image: Image.Image, mark: tuple[float, ...] | None = None) -> Image.Image:
    """Scale a whole picture into a cell, with a red box around the marked place."""
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    if mark:
        left, top, right, bottom = (round(side * scale) for side in mark)
        ImageDraw.Draw(fitted).rectangle((left, top, right - 1, bottom - 1), outline=_BOX, width=2)
    cell = Image.new("RGB", (CELL, CELL), _BACKGROUND)
    cell.paste(fitted, ((CELL - fitted.width) // 2, (CELL - fitted.height) // 2))
    return cell


def _grid(rows: Sequence[Sequence[Cell]], part: int | None = None) -> Image.Image:
    """Lay cells out in rows; a wider gap stands before column `part`."""
    extra = CELL // 4 if part else 0
    width = GAP + len(rows[0]) * (CELL + GAP) + extra
    sheet = Image.new("RGB", (width, GAP + len(rows) * (CELL + CAPTION + GAP)), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for y, row in enumerate(rows):
        top = GAP + y * (CELL + CAPTION + GAP)
        for x, cell in enumerate(row):
            left = GAP + x * (CELL + GAP) + (extra if part and x >= part else 0)
            sheet.paste(cell.picture, (left, top))
            middle = (left + CELL // 2, top + CELL + CAPTION // 2)
            draw.text(middle, _shortened(cell.caption, font), fill=_INK, font=font, anchor="mm")
    return sheet


def _shortened(text: str, font) -> str:
    """Leave out the middle of words that are wider than a cell."""
    shown = text
    while font.getlength(shown) > CELL and len(text) > 2:
        text = text[: len(text) // 2] + text[len(text) // 2 + 1 :]
        shown = text[: len(text) // 2] + "…" + text[len(text) // 2 :]
    return shown
