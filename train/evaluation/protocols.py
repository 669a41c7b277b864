"""Protocols of evaluation: which metrics are reported, and of which part of the pictures."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An evaluation by name.

    Attributes:
        name: what --protocol takes.
        metrics: names of metrics, in the order of their columns.
        square: edge in pixels of the central square that is scored, which is also the short edge that every result
            must have; None scores whole pictures of any size.
    """

    name: str
    metrics: tuple[str, ...]
    square: int | None = None

    def __post_init__(self) -> None:
        if not self.metrics or (self.square is not None and self.square < 16):
            raise ValueError(f"expected metrics and a square of at least 16 pixels, got {self}; name some metrics")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # EAM, section 4.1: results with a short edge of 1024 pixels, cut to the central square. It names the metrics
        # but not their variants: these are pyiqa's defaults, PSNR and SSIM on luma.
        Protocol(name="eam", metrics=("psnr", "ssim", "lpips", "maniqa", "clipiqa", "musiq"), square=1024),
        # As StableSR and its successors report 128 -> 512 crops, by ids of pyiqa.
        Protocol(
            name="stablesr",
            metrics=("psnr", "ssim", "lpips", "dists", "fid", "niqe", "musiq", "maniqa-pipal", "clipiqa"),
        ),
        # What packages alone can compute, without fetching weights.
        Protocol(
            name="offline",
            metrics=(
                *("stlpips", "stlpips-vgg", "psnr", "ssim", "ms_ssim", "gmsd", "vif", "fsim", "vsi"),
                *("niqe", "piqe", "brisque", "ssimulacra2", "flip", "psnr-lr"),
            ),
        ),
    )
}
