"""What the test of interrupts and the recorded soak share: prompts of many settings, interrupts, memory measured.

Memory is compared at one point of a cycle only: nothing runs, the same prompt ran last (ComfyUI keeps the results of
its last prompt), its list of past prompts is emptied, garbage is collected and the allocator has given free pages back.
"""

import random
import statistics
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from comfy_host import ComfyServer, ExecutionError, Interrupted, Progress
from graphs import SAMPLING, Graph, fresh

PHOTOS = ("one.png", "two.png")
STEPS_TO_STOP = {"steps": 4, "tile": 64, "overlap": 32}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What ComfyUI's process held at one moment; see soak_pack.py."""

    resident: int
    tidied: int
    objects: int
    tensor_bytes: int
    tensors: int
    patchers: int
    loaded: int
    pack_objects: int
    pack_types: dict[str, int]


@dataclass(kw_only=True)
class Cycles:
    """What interrupts came to."""

    interrupted: int = 0
    too_late: int = 0
    where: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)


def memory(server: ComfyServer) -> Memory:
    server._post("/history", json={"clear": True})
    return Memory(**server._get("/eam_soak/memory").json())


def unload(server: ComfyServer) -> None:
    """Let ComfyUI forget results and models, and wait for it: it does so once its worker wakes up."""
    fresh(server)
    deadline = time.monotonic() + 60
    while memory(server).loaded:
        assert time.monotonic() < deadline, "models stay loaded"
        time.sleep(0.1)


def growth(values: Iterable[float]) -> float:
    """Return how much the last third lies above the first, as a share; medians, as single readings scatter."""
    values = list(values)
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) / statistics.median(values[:third]) - 1


def digest(server: ComfyServer, prompt: dict[str, Any], **run: Any) -> str:
    """Run a prompt that ends in a TestDigest; return what it says of the picture."""
    node = next(key for key, value in prompt.items() if value["class_type"] == "TestDigest")
    return server.run(prompt, **run)[node]["digest"][0]


# Interrupts


def long_prompt(server: ComfyServer, seed: int, *, whole: bool) -> dict[str, Any]:
    """Make a prompt of many tiles and steps, by EAM_Upscale or by the expert graph."""
    graph = Graph(server)
    image = graph.add("LoadImage", image=PHOTOS[seed % 2])[0]
    image = graph.add("ImageScale", image=image, upscale_method="bicubic", width=24, height=20, crop="disabled")[0]
    if whole:
        result = graph.add("EAM_Upscale", image=image, **_UPSCALE | STEPS_TO_STOP | {"seed": seed})[0]
    else:
        loaded = graph.load()
        sampled = graph.tiled_sampler(graph.apply(image, loaded), **STEPS_TO_STOP | {"seed": seed, "cfg": 2.0})
        decoded = graph.add("VAEDecode", samples=sampled[0], vae=loaded[2])
        result = graph.add("EAM_ColorFix", image=decoded[0], reference=image, method="wavelet")[0]
    graph.add("TestDigest", image=result)
    graph.add("PreviewImage", images=result)
    return graph.prompt


_UPSCALE = {"scale": 4.0, "fidelity": 0.0, "caption": ""}


def interrupt_cycles(server: ComfyServer, count: int, *, warm_up: int, seed: int = 0) -> Cycles:
    """Interrupt and queue again until `count` runs were interrupted; each picture must be the untroubled one.

    Two prompts take turns, so that none finds its own results in ComfyUI's cache. Half of the interrupts come at a
    tile, half at any moment, loading and decoding included.

    Args:
        server: has soak_pack.py and the photos.
        count: of runs to interrupt.
        warm_up: cycles before memory counts.
        seed: of the moments.
    """
    draws, cycles = random.Random(seed), Cycles()
    prompts = [long_prompt(server, number, whole=bool(number)) for number in (0, 1)]
    unload(server)
    began = time.monotonic()
    untroubled = [digest(server, prompt) for prompt in prompts]
    seconds = (time.monotonic() - began) / 2
    for number in range(3 * count):
        if cycles.interrupted == count:
            break
        which = number % 2
        if draws.random() < 0.1:
            unload(server)
        stop = AtTile(server, draws.random()) if number % 4 < 2 else AtMoment(server, draws.uniform(0, 0.9 * seconds))
        _note(cycles, stop, prompts[which])
        found = digest(server, prompts[which])
        if found != untroubled[which]:
            cycles.changed.append(f"run {number}: {found} instead of {untroubled[which]}")
        if which == 1 and number >= warm_up:
            cycles.memory.append(memory(server))
    return cycles


def _note(cycles: Cycles, stop: "AtTile | AtMoment", prompt: dict[str, Any]) -> None:
    try:
        with stop:
            stop.server.run(prompt, stop.on_progress)
    except Interrupted as error:
        cycles.interrupted += 1
        node = str(error).removeprefix("interrupted in ")
        cycles.where[node] = cycles.where.get(node, 0) + 1
    else:
        cycles.too_late += 1


class AtTile:
    """Interrupt once the sampler has come a given share of its way."""

    def __init__(self, server: ComfyServer, share: float) -> None:
        self.server, self.share, self.sent = server, share, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def on_progress(self, progress: Progress) -> None:
        if not self.sent and progress.node_type in ("EAM_TiledSampler", "EAM_Upscale") and progress.maximum > 1:
            self.sent = progress.value >= self.share * progress.maximum
            if self.sent:
                self.server.interrupt()


class AtMoment:
    """Interrupt a number of seconds after the prompt was queued."""

    on_progress = None

    def __init__(self, server: ComfyServer, seconds: float) -> None:
        self.server, self.timer = server, threading.Timer(seconds, server.interrupt)

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        self.timer.join()


# Prompts of changing settings


def draw(server: ComfyServer, number: int) -> dict[str, Any]:
    """Make the prompt of a number: size, batch, tiles, steps, strengths and colours are drawn with it as seed."""
    one = random.Random(number)
    graph = Graph(server)
    image = graph.add("LoadImage", image=one.choice(PHOTOS))[0]
    width, height = one.choice([(32, 24), (40, 32), (64, 48), (24, 72)])
    image = graph.add("ImageScale", image=image, upscale_method="bicubic", width=width, height=height, crop="disabled")[
        0
    ]
    image = graph.add("RepeatImageBatch", image=image, amount=one.choice([1, 1, 2]))[0]
    tile = one.choice([0, 64, 96, 128])
    sampling = {
        "seed": one.randrange(1000),
        "steps": one.choice([1, 2, 3]),
        "cfg": one.choice([1.0, 1.0, 3.0]),
        "sampler_name": one.choice(["euler", "heun", "dpmpp_2m"]),
        "scheduler": one.choice(["sgm_uniform", "normal"]),
        "start_sigma": one.choice([0.5, 1.0]),
        "fidelity": one.choice([0.0, 0.5]),
        "tile": tile,
        "overlap": one.choice([0, 16, 32]),
        "tile_batch": one.choice([1, 2, 4]),
    }
    scale, strength = one.choice([1.0, 2.0, 2.5, 4.0]), one.choice([0.0, 0.5, 1.0, 1.5])
    colors = one.choice(["wavelet", "adain", "lab", "none"])
    if one.random() < 0.5:
        given = {"scale": scale, "control_scale": strength, "color_fix": colors, "caption": ""}
        result = graph.add("EAM_Upscale", image=image, **given | sampling)
        result, model = result[0], result[2]
    else:
        loaded = graph.load()
        applied = graph.apply(image, loaded, scale=scale, control_scale=strength, end=one.choice([0.6, 1.0]))
        sampled = graph.tiled_sampler(applied, **SAMPLING | sampling)
        decoded = graph.add("VAEDecode", samples=sampled[0], vae=loaded[2])
        model, result = applied[0], decoded[0]
        result = graph.add("EAM_ColorFix", image=result, reference=image, method=colors)[0]
    graph.add("TestDigest", image=result)
    if one.random() < 0.3:
        graph.add("EAM_Report", restored=result, original=image, model=model, tile=tile, overlap=0)
    if one.random() < 0.3:
        graph.add("EAM_Compare", before=image, after=result)
    return graph.prompt


@dataclass(kw_only=True)
class Soak:
    """What a soak came to: digests by setting, pictures that differ from an earlier one, memory, refused settings."""

    digests: dict[int, str] = field(default_factory=dict)
    runs: int = 0
    changed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)


def soak(server: ComfyServer, prompts: int, *, settings: int, every: int, seed: int = 0) -> Soak:
    """Queue prompts of changing settings, loading and unloading in between.

    Args:
        server: has soak_pack.py and the photos.
        prompts: how many to queue.
        settings: how many there are to draw from; each comes again, and its picture must too.
        every: prompts between measures of memory; before each, one and the same prompt runs.
        seed: of the order.
    """
    order, result = random.Random(seed), Soak()
    reference = long_prompt(server, 0, whole=False)
    for number in range(prompts):
        setting = order.randrange(settings)
        if order.random() < 0.1:
            unload(server)
        _run_setting(server, setting, result)
        if (number + 1) % every == 0:
            unload(server)
            digest(server, reference)
            result.memory.append(memory(server))
    return result


def _run_setting(server: ComfyServer, setting: int, result: Soak) -> None:
    result.runs += 1
    try:
        found = digest(server, draw(server, setting))
    except ExecutionError as error:
        result.failed.append(f"setting {setting}: {error}")
        return
    first = result.digests.setdefault(setting, found)
    if first != found:
        result.changed.append(f"setting {setting}: {found} instead of {first}")
