"""Measures of restorations in words and as a Markdown table."""

from collections.abc import Sequence
from dataclasses import dataclass

from .report import Measures

# Below, a result hardly is its input; degraded inputs stay well above.
_PSNR_LOW = 15.0
_SHIFT_WORDS = ((1.0, "not visible"), (2.5, "hardly visible"), (5.0, "visible side by side"))
_SHIFT_STRONG = 5.0
# 60 photographs without seams measured 0.84 to 1.13 at places like those of borders.
_SEAM_FAINT, _SEAM_CLEAR = 1.15, 1.3
_HEADINGS = (
    *("picture", "size", "input", "scale", "PSNR to input (dB)", "SSIM to input", "color shift (delta E)", "seams"),
    *("values", "seconds", "peak memory (GB)"),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run took up to the report.

    Attributes:
        seconds: since the run began; None where its start was not seen.
        num_ran: how many of the nodes before the report ran.
        num_cached: how many gave what they gave in an earlier run.
        peak_bytes: most memory held at once; None where it cannot be told.
        peak_of: whose memory that is and since when, as the end of a sentence.
        peak_is_of_run: whether the peak is this run's alone.
    """

    seconds: float | None
    num_ran: int
    num_cached: int
    peak_bytes: int | None
    peak_of: str
    peak_is_of_run: bool

    @property
    def cached(self) -> bool:
        """Whether nothing ran before the report."""
        return self.num_ran == 0 and self.num_cached > 0


def describe(measures: Sequence[Measures], cost: Cost) -> str:
    """Return sentences: warnings of all pictures, then each picture, a line each, then the cost of the run."""
    names = [f"Picture {index}: " if len(measures) > 1 else "" for index in range(1, len(measures) + 1)]
    lines = [f"Warning: {name}{text}" for name, one in zip(names, measures) for text in warnings(one)]
    lines += [name + " ".join(_sentences(one)) for name, one in zip(names, measures)]
    return "\n".join([*lines, " ".join(filter(None, (_time_sentence(cost), _memory_sentence(cost))))])


def table(measures: Sequence[Measures], cost: Cost) -> str:
    """Return a Markdown table with a row per picture; seconds and memory are the whole run's."""
    seconds = "cached" if cost.cached else _number(cost.seconds, 2)
    no_peak = cost.peak_bytes is None or (cost.cached and cost.peak_is_of_run)
    memory = "cached" if no_peak and cost.cached else _number(None if no_peak else _gigabytes(cost), 2)
    rows = [_HEADINGS, ("---",) * len(_HEADINGS)]
    for index, one in enumerate(measures, start=1):
        sizes = (f"{one.width} x {one.height}", f"{one.input_width} x {one.input_height}", f"{one.scale:.3g}")
        numbers = ((one.psnr, 2), (one.ssim, 4), (one.color_shift, 2), (one.seams, 3))
        rows.append((str(index), *sizes, *(_number(*number) for number in numbers), one.state, seconds, memory))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def warnings(one: Measures) -> list[str]:
    """Return what is wrong with a picture and what to do about it, a sentence each."""
    found = []
    if one.state == "not finite" and one.not_finite:
        found.append(
            f"{max(one.not_finite, 0.0001):.2%} of the values are NaN or infinite and show as black; is the VAE or the "
            "model in half precision? Start ComfyUI with --fp32-vae, or load weights in bf16 or fp32."
        )
    elif one.state == "not finite":
        found.append("the original holds values that are NaN or infinite; check the nodes before it.")
    elif one.state == "black":
        found.append(
            "the picture is black, its original is not; is the VAE in half precision? Start ComfyUI with --fp32-vae."
        )
    elif one.state == "one color":
        found.append(
            "the picture has one color all over, its original has not; check that the VAE belongs to the model, and "
            "steps and start_sigma of the sampler."
        )
    if one.psnr is not None and one.psnr < _PSNR_LOW and one.state == "ok":
        found.append("the picture hardly is its original; is the right original connected?")
    elif one.color_shift is not None and one.color_shift > _SHIFT_STRONG and one.state == "ok":
        found.append("the colors shifted clearly; EAM Color Fix gives the original's back.")
    if one.seams is not None and one.seams > _SEAM_CLEAR:
        found.append("borders of tiles show; raise the sampler's overlap, or its tile where memory allows.")
    return found


def _sentences(one: Measures) -> list[str]:
    size = f"{one.width} x {one.height} pixels from {one.input_width} x {one.input_height}, scale {one.scale:.3g}."
    if one.psnr is None or one.color_shift is None:
        return [size, "Nothing else can be measured."]
    ssim = "" if one.ssim is None else f" and SSIM {one.ssim:.4f}"
    word = next((word for limit, word in _SHIFT_WORDS if one.color_shift < limit), "clearly visible")
    return [
        size,
        f"Reduced to the size of its original it agrees with it at PSNR {one.psnr:.2f} dB{ssim}.",
        f"Its coarse colors are off by delta E {one.color_shift:.2f}, {word}.",
        _seam_sentence(one),
    ]


def _seam_sentence(one: Measures) -> str:
    if not one.num_tiles:
        return "Seams were not measured: connect the sampler's model or set tile."
    if one.num_tiles == 1:
        return "One tile covers it, so there are no seams."
    if one.seams is None:
        return (
            f"Seams of its {one.num_tiles} tiles could not be measured: there is nothing to compare their borders with."
        )
    verdict = "no seam shows" if one.seams < _SEAM_FAINT else "seams may show"
    verdict = verdict if one.seams <= _SEAM_CLEAR else "seams show"
    return f"Steps at the borders of its {one.num_tiles} tiles are {one.seams:.2f} times those elsewhere: {verdict}."


def _time_sentence(cost: Cost) -> str:
    if cost.cached:
        return "Everything before this node came from the cache, so no time was taken."
    if cost.seconds is None:
        return "The time is not known: ComfyUI did not tell when the run began."
    total = cost.num_ran + cost.num_cached
    cache = f"; {cost.num_cached} of the {total} nodes before this one came from the cache" if cost.num_cached else ""
    return f"The run took {cost.seconds:.2f} s up to here{cache}."


def _memory_sentence(cost: Cost) -> str:
    if cost.peak_bytes is None or (cost.cached and cost.peak_is_of_run):
        return ""
    return f"Peak memory: {_gigabytes(cost):.2f} GB of {cost.peak_of}."


def _gigabytes(cost: Cost) -> float:
    return (cost.peak_bytes or 0) / 1e9


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
