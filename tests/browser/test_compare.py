"""EAM Compare: pixels on the screen against the pictures, in every mode, by mouse, keyboard and touch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from comfy_host import ComfyServer
from comparison import Comparison, centred, enlarged, random_picture, upload

WIDTH, HEIGHT = 60, 40
BEFORE, AFTER = random_picture(WIDTH, HEIGHT, 1), random_picture(WIDTH, HEIGHT, 2)
FLAT = (10, 10, 18)  # what the map shows where nothing differs
EDGE = 12  # screen pixels around the wipe line that are not looked at


@pytest.fixture(scope="module")
def names(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pictures")
    changed = BEFORE.copy()
    changed[10, 20] = (BEFORE[10, 20].astype(int) + 100) % 256
    pictures = {
        "before": BEFORE,
        "after": AFTER,
        "changed": changed,
        "small": random_picture(WIDTH // 4, HEIGHT // 4, 3),
        "tall": random_picture(30, 200, 4),
    }
    return {name: upload(server, folder, f"compare_{name}.png", pixels) for name, pixels in pictures.items()}


@pytest.fixture
def comparison(classic_page: Any) -> Comparison:
    left_over = classic_page.locator("dialog[open] [aria-label='Leave full screen']")
    if left_over.count():
        left_over.click()
    return Comparison(classic_page)


def same(shot: np.ndarray, picture: np.ndarray, margin: int = 0) -> bool:
    """Whether a photographed picture is the given one; the corners carry names."""
    assert shot.shape == picture.shape
    inner = slice(40, -40), slice(margin or None, -margin or None)
    return np.array_equal(shot[inner], picture[inner])


def test_wipe_shows_single_pixels_of_both_sides(comparison: Comparison, names: dict[str, str]) -> None:
    comparison.build([names["before"]], [names["after"]])
    assert comparison.tags() == ["Before  60 × 40", "After  60 × 40"]
    comparison.full()
    comparison.press("8")
    assert comparison.percent() == 800
    left, right = enlarged(BEFORE, 8), enlarged(AFTER, 8)
    for share in (0.45, 0.5, 0.6):
        comparison.hover(share)
        shot = comparison.pixels()
        line = round(share * shot.shape[1]) - (shot.shape[1] - left.shape[1]) // 2
        shown = centred(shot, *left.shape[1::-1])
        assert same(shown[:, : line - EDGE], left[:, : line - EDGE])
        assert same(shown[:, line + EDGE :], right[:, line + EDGE :])
        assert (shown[100, line - 1 : line + 1] > 240).all(), "no line under the pointer"


def test_modes_by_key_and_button(comparison: Comparison, names: dict[str, str]) -> None:
    comparison.build([names["before"]], [names["after"]], labels=("Photo", "Restored"))
    comparison.full()
    comparison.press("8", "s")
    shot = comparison.pixels()
    half = (shot.shape[1] - 2) // 2
    assert same(centred(shot[:, :half], WIDTH * 8, HEIGHT * 8), enlarged(BEFORE, 8))
    assert same(centred(shot[:, -half:], WIDTH * 8, HEIGHT * 8), enlarged(AFTER, 8))
    assert comparison.tags() == ["Photo  60 × 40", "Restored  60 × 40"]

    comparison.click("Flicker")
    comparison.page.locator(".eam-compare-panel").focus()
    seen = []
    for _ in range(2):
        comparison.press(" ")
        shown = centred(comparison.pixels(), WIDTH * 8, HEIGHT * 8)
        seen.append((comparison.tags()[0][:5], same(shown, enlarged(BEFORE, 8)), same(shown, enlarged(AFTER, 8))))
    assert sorted(seen) == [("Photo", True, False), ("Resto", False, True)]

    comparison.press("d")
    comparison.press("r", "r")  # the whole range: 64, 16, 255
    shown = centred(comparison.pixels(), WIDTH * 8, HEIGHT * 8)
    squares = shown[4::8, 4::8].astype(int).sum(-1)[6:-6]
    difference = np.abs(BEFORE.astype(int) - AFTER).max(-1)[6:-6]
    assert (np.diff(squares.ravel()[difference.ravel().argsort()]) >= -2).all(), "more difference, less light"
    assert "255" in comparison.text("legend")


def test_heat_map_shows_one_changed_pixel_and_nothing_in_equal_pictures(
    comparison: Comparison, names: dict[str, str]
) -> None:
    comparison.build([names["before"]], [names["before"]])
    assert comparison.text("figures") == "The images are equal"
    comparison.full()
    comparison.press("8", "d")
    shown = centred(comparison.pixels(), WIDTH * 8, HEIGHT * 8)
    assert (shown[:-40] == FLAT).all()

    comparison.press("Escape")
    assert comparison.page.locator("dialog").count() == 0
    comparison.build([names["before"]], [names["changed"]])
    comparison.full()
    comparison.press("8", "d")
    shown = centred(comparison.pixels(), WIDTH * 8, HEIGHT * 8)[:-40]
    hot = (shown != FLAT).any(-1)
    assert hot[80:88, 160:168].all() and hot.sum() == 64


def test_zoom_and_pan_stay_in_step_and_have_ends(comparison: Comparison, names: dict[str, str]) -> None:
    comparison.build([names["before"]], [names["after"]])
    comparison.full()
    comparison.press("s", *"+" * 40)
    assert comparison.percent() == 6400
    comparison.press("ArrowLeft", "ArrowUp", "ArrowLeft")
    shot = comparison.pixels()
    half = (shot.shape[1] - 2) // 2
    one, other = shot[100:, :half], shot[100:, -half:]
    colours = [{tuple(pixel) for pixel in side[::16, ::16].reshape(-1, 3)} for side in (one, other)]
    known = [{tuple(pixel) for pixel in picture.reshape(-1, 3)} for picture in (BEFORE, AFTER)]
    assert all(len(found) > 20 and found <= colour for found, colour in zip(colours, known))
    places = [
        {tuple(np.argwhere((picture == colour).all(-1))[0]) for colour in found}
        for picture, found in zip((BEFORE, AFTER), colours)
    ]
    assert places[0] == places[1], "the sides show different places"

    comparison.page.mouse.move(*comparison.at(0.25, 0.5))
    for delta in (1e7, -1e7, 1e9):
        for _ in range(40):
            comparison.page.mouse.wheel(0, delta)
    comparison.settle()
    assert 0 < comparison.percent() <= 100
    comparison.press("0")
    fit = comparison.percent()
    comparison.click("One to one")
    assert comparison.percent() == 100 != fit


def test_unequal_sizes_and_batches_say_so(comparison: Comparison, names: dict[str, str]) -> None:
    comparison.build([names["small"]], [names["before"], names["after"]])
    assert comparison.tags() == ["Before  15 × 10", "After  60 × 40"]
    assert comparison.text("note") == (
        "Sizes differ: before is enlarged bicubically to 60 × 40 for the figures. "
        "Batches differ (1 and 2): before repeats its only image."
    )
    comparison.full()
    comparison.press("8", "f", " ")
    for keys, picture in ((["n"], AFTER), (["n"], BEFORE), (["p"], AFTER)):
        comparison.press(*keys)
        comparison.ready()
        assert same(centred(comparison.pixels(), WIDTH * 8, HEIGHT * 8), enlarged(picture, 8))
    comparison.press(" ")
    small = enlarged(random_picture(15, 10, 3), 32)
    assert same(centred(comparison.pixels(), WIDTH * 8, HEIGHT * 8), small), "stretched, each pixel a square"
    assert "2 / 2" in comparison.page.locator("[aria-label='Images of the batch']").inner_text()

    comparison.press("Escape")
    comparison.build([names["tall"]], [names["before"]])
    assert "shapes differ, so it is stretched" in comparison.text("note")


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_flicker_keeps_still_for_those_who_asked(open_page: Any, names: dict[str, str], motion: str) -> None:
    comparison = Comparison(open_page("classic", reduced_motion=motion))
    comparison.build([names["before"]], [names["after"]])
    comparison.click("Flicker")
    seen = set()
    for _ in range(8):
        seen.add(comparison.tags()[0].split()[0])
        comparison.page.wait_for_timeout(300)
    assert seen == ({"Before"} if motion == "reduce" else {"Before", "After"})


def touch(session: Any, kind: str, *points: tuple[float, float]) -> None:
    marks = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
    session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": marks})


@pytest.fixture
def touched(open_page: Any, names: dict[str, str]) -> Iterator[tuple[Comparison, Any]]:
    comparison = Comparison(open_page("classic", has_touch=True))
    comparison.build([names["before"]], [names["after"]])
    session = comparison.page.context.new_cdp_session(comparison.page)
    yield comparison, session
    session.detach()


def test_one_finger_wipes_and_two_zoom_the_picture_alone(touched: tuple[Comparison, Any]) -> None:
    comparison, session = touched
    scale, fit = comparison.graph_scale(), comparison.percent()
    touch(session, "touchStart", comparison.at(0.5, 0.5))
    touch(session, "touchMove", comparison.at(0.3, 0.5))
    comparison.settle()
    shot = comparison.pixels()
    line = round(0.3 * shot.shape[1])
    assert (shot[shot.shape[0] // 2, line - 1 : line + 1] > 240).all()
    touch(session, "touchEnd")

    touch(session, "touchStart", comparison.at(0.4, 0.5), comparison.at(0.6, 0.5))
    for reach in (0.2, 0.3, 0.4):
        touch(session, "touchMove", comparison.at(0.5 - reach, 0.5), comparison.at(0.5 + reach, 0.5))
    touch(session, "touchEnd")
    comparison.settle()
    assert comparison.percent() == pytest.approx(4 * fit, rel=0.05)
    assert comparison.graph_scale() == scale, "the graph zoomed too"


def test_server_tells_of_the_temp_folder_alone(server: ComfyServer) -> None:
    import requests

    names = ["../input/compare_before.png", "/etc/hostname", "", "absent.png"]
    answer = requests.post(f"{server.url}/eam/kept_pictures", json={"names": names}, timeout=30)
    assert answer.json() == {"kept": [False] * 4}
    for bad in ({"names": [1]}, {"names": "x"}, {}, []):
        assert requests.post(f"{server.url}/eam/kept_pictures", json=bad, timeout=30).status_code == 400
