"""What a running EAM_TiledSampler shows: pictures with a frame, counts, time left; and how fast it can be stopped."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import ComfyServer
from page_news import News, follow
from PIL import Image
from safetensors.torch import load_file

from eam_core.tiling import Box, TileGrid

COUNTS = re.compile(r"tile (\d+)/(\d+), step (\d+)/(\d+)(?:, (\d+) s left)?")
SIDE = 512  # longest side of core's previews
FRAME = np.array([255, 170, 0])
SMALL = TileGrid(height=12, width=16, tile=8, overlap=4)  # latents of a photo of 32 x 24, four times as large


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "custom_nodes").mkdir()
    shutil.copy(Path(__file__).with_name("progress_pack.py"), folder / "custom_nodes")
    with ComfyServer(folder) as running:
        y, x = np.mgrid[0:24, 0:32]
        pixels = np.stack([90 + 60 * np.sin(x / 3) * np.cos(y / 4), 4 * x + 20, 5 * y + 60], axis=-1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "photo.png")
        running.upload_image(folder / "photo.png")
        yield running


class Run:
    """A tiled run of the embedded model that counts the passes of its network."""

    def __init__(self, host: ComfyServer, path: Path, *, method: str = "auto", scale: float = 4.0) -> None:
        self.host, self.path, self.prompt = host, path, {}
        loaded = self.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control="auto")
        text = [self.add("CLIPTextEncode", text="", clip=[loaded, 1]), 0]
        photo = [self.add("LoadImage", image="photo.png"), 0]
        links = {"model": [loaded, 0], "positive": text, "negative": text, "vae": [loaded, 2], "control": [loaded, 3]}
        numbers = {"scale": scale, "control_scale": 1.0, "start": 0.0, "end": 1.0}
        self.applied = self.add("EAM_ApplyControl", image=photo, **links, **numbers)
        self.model = [self.add("TestPreviewMethod", model=[self.applied, 0], method=method), 0]

    def add(self, kind: str, **inputs: Any) -> str:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def count(self, seconds: float = 0.0, interrupt_at: int = 0) -> "Run":
        numbers = {"seconds": seconds, "interrupt_at": interrupt_at}
        self.model = [self.add("TestCountTiles", model=self.model, path=str(self.path), **numbers), 0]
        return self

    def sampler(self, **changes: Any) -> str:
        links = {"model": self.model, "positive": [self.applied, 1], "negative": [self.applied, 2]}
        numbers = {"seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}
        numbers |= {
            "start_sigma": 1.0,
            "fidelity": 0.0,
            "tile": 64,
            "overlap": 32,
            "tile_batch": 1,
            "blend_every_step": True,
        }
        return self.add("EAM_TiledSampler", latent=[self.applied, 3], **links | numbers | changes)

    def latents(self, sampled: str, slot: int = 0) -> torch.Tensor:
        """Run it and return its LATENT; `news` has what the page was told."""
        saved = self.add("SaveLatent", samples=[sampled, slot], filename_prefix="test")
        self.news = follow(self.host, self.prompt)
        assert self.news.outcome == "execution_success"
        folder = self.host.work_dir / "output"
        newest = max(folder.glob("test_*.latent"), key=lambda file: file.stat().st_mtime_ns)
        assert saved
        return load_file(newest)["latent_tensor"]

    def passes(self) -> list[int]:
        """Return how many tiles each pass of the network had."""
        return [int(line) for line in self.path.read_text().split()]


def place(picture: np.ndarray) -> tuple[float, ...] | None:
    """Return top, left, bottom, right of a picture's frame; None without one."""
    rows, columns = np.nonzero(np.abs(picture - FRAME).max(axis=-1) < 70)
    return None if len(rows) == 0 else (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


def scaled(box: Box, grid: TileGrid) -> tuple[float, ...]:
    top, left, height, width = (side * SIDE / max(grid.height, grid.width) for side in box)
    return top, left, top + height, left + width


def counts(news: News) -> list[list[int]]:
    found = [COUNTS.fullmatch(text) for _, text in news.texts[:-1]]
    assert all(found)
    return [[int(number) for number in match.groups()[:4]] for match in found if match]


def test_frame_counts_and_growing_picture(host: ComfyServer, tmp_path: Path) -> None:
    """Tiles that take long enough for each to be shown."""
    run = Run(host, tmp_path / "passes").count(seconds=0.55)
    sampled = run.sampler()
    run.latents(sampled)
    news, boxes = run.news, SMALL.boxes
    assert len(boxes) == 6
    assert run.passes() == [1] * 12
    assert {node for node, _ in news.texts} == {node for node, _, _ in news.pictures} == {sampled}

    assert counts(news) == [[tile, 6, step, 2] for step in (1, 2) for tile in range(1, 7)]
    assert re.fullmatch(r"6 tiles, 2 steps in \d+ s", news.texts[-1][1])
    left = [COUNTS.fullmatch(text).group(5) for _, text in news.texts[:-1]]
    assert left[0] is None
    for seconds, then in list(zip(left, news.times))[2:]:
        really = news.times[-1] - then
        assert abs(int(seconds) - really) < 2 + really / 2

    framed = {tuple(map(int, COUNTS.match(said).group(3, 1))): picture for _, picture, said in news.pictures[:-1]}
    assert {(1, 1), (1, 6)} <= set(framed) and len(framed) > 9, "a slow machine may leave out some"
    for (_, tile), picture in framed.items():
        assert picture.shape == (384, 512, 3)
        np.testing.assert_allclose(place(picture), scaled(boxes[tile - 1], SMALL), atol=4)
    assert place(news.pictures[-1][1]) is None

    first, last = framed[1, 1], framed[1, 6]
    unfinished = np.s_[300:370, 440:500]  # the last tile's corner, which no other tile reaches
    finished = np.s_[10:200, 10:200]
    assert np.abs(last[unfinished] - first[unfinished]).max() < 8
    assert np.abs(last[finished] - first[finished]).mean() > 3 * np.abs(last[unfinished] - first[unfinished]).mean()


def test_previews_change_nothing_and_can_be_off(host: ComfyServer, tmp_path: Path) -> None:
    results = {}
    for method in ("auto", "none"):
        run = Run(host, tmp_path / method, method=method).count()
        results[method] = run.latents(run.sampler(tile_batch=4))
        assert run.passes() == [4, 2, 4, 2]
        assert counts(run.news)[0] == [4, 6, 1, 2]
        assert bool(run.news.pictures) == (method == "auto")
    assert torch.equal(results["auto"], results["none"])


def test_samplers_with_two_rounds_in_a_step(host: ComfyServer, tmp_path: Path) -> None:
    run = Run(host, tmp_path / "passes").count(seconds=0.11)
    run.latents(run.sampler(sampler_name="heun"))
    assert len(run.passes()) == 18  # the last step needs one round only
    told = counts(run.news)
    assert [tile for tile, *_ in told] == [*range(1, 7)] * 3
    # Core tells of a step's end after its first round.
    assert [step for _, _, step, _ in told] == [1] * 6 + [2] * 12


@pytest.mark.parametrize("method", ["auto", "none"])
def test_interrupt_stops_before_the_next_tile(host: ComfyServer, tmp_path: Path, method: str) -> None:
    run = Run(host, tmp_path / "passes", method=method, scale=8.0).count(interrupt_at=40)
    saved = run.add("SaveLatent", samples=[run.sampler(steps=4, seed=8), 0], filename_prefix="never")
    assert saved and follow(host, run.prompt).outcome == "execution_interrupted"
    num_tiles = len(TileGrid(height=24, width=32, tile=8, overlap=4).boxes)
    assert num_tiles == 35
    assert len(run.passes()) == 40, "the fifth tile of the second step was the last"


@pytest.mark.parametrize("by", ["KSampler", "SamplerCustomAdvanced"])
def test_cores_samplers_show_the_picture(host: ComfyServer, tmp_path: Path, by: str) -> None:
    run = Run(host, tmp_path / "passes").count(seconds=0.02)
    if by == "KSampler":
        links = {"positive": [run.applied, 1], "negative": [run.applied, 2], "latent_image": [run.applied, 3]}
        settings = {"sampler_name": "euler", "scheduler": "sgm_uniform", "denoise": 1.0}
        sampled = run.add("KSampler", model=run.model, seed=3, steps=3, cfg=1.0, **links, **settings)
    else:
        guider = run.add("BasicGuider", model=run.model, conditioning=[run.applied, 1])
        sigmas = run.add("BasicScheduler", model=run.model, scheduler="sgm_uniform", steps=3, denoise=1.0)
        parts = {"guider": [guider, 0], "sigmas": [sigmas, 0], "latent_image": [run.applied, 3]}
        parts |= {"noise": [run.add("RandomNoise", noise_seed=3), 0]}
        parts |= {"sampler": [run.add("KSamplerSelect", sampler_name="euler"), 0]}
        sampled = run.add("SamplerCustomAdvanced", **parts)
    run.latents(sampled)
    assert len(run.news.pictures) == 3
    photo = Image.open(host.work_dir / "photo.png").resize((512, 384), Image.Resampling.BICUBIC)
    last = run.news.pictures[-1][1]
    assert np.corrcoef(last.ravel(), np.asarray(photo).ravel())[0, 1] > 0.9
