"""A folder through a graph of a real ComfyUI: each picture once, names kept, bad ones listed, memory even."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from comfy_host import ComfyServer
from folders import WORKFLOW, Job, make_pictures
from PIL import Image

# What the server may grow by over 400 pictures. A history of all these runs alone would be larger.
MEMORY_GROWTH = 8e6


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_five_hundred_pictures(server: ComfyServer) -> None:
    job = Job(server)
    names = [f"p{number}.png" for number in range(500)]
    make_pictures(job.folder, *names)
    process, memory = psutil.Process(server._process.pid), {}
    job.queue()
    while server._get("/prompt").json()["exec_info"]["queue_remaining"]:
        done = len(job.results()) if job.output.exists() else 0
        memory.setdefault(done // 100, process.memory_info().rss)
        time.sleep(0.3)

    assert [line["name"] for line in job.lines("done")] == names
    assert job.results() == sorted(names)
    for name in names[::50]:
        assert np.array_equal(pixels(job.output / name), 255 - pixels(job.folder / name))
    history = server._get("/history").json()
    assert list(history.values())[-1]["outputs"]["load"]["text"] == ["Finished: 500 of 500."]
    assert list(history.values())[-2]["outputs"]["save"]["text"] == ["500 of 500: p499.png"]
    assert memory[4] - memory[1] < MEMORY_GROWTH
    queued_here = [
        run
        for run in history.values()
        if run["prompt"][2].get("load", {}).get("inputs") == job.prompt["load"]["inputs"]
    ]
    assert len(queued_here) <= 66
    assert job.run() == "Nothing is left to do: all 500 pictures are finished."


def test_metadata_reads_back_as_the_workflow(server: ComfyServer) -> None:
    job = Job(server, ("EAM_Degrade", {"scale": 1, "blur": 0.0, "noise": 1.0, "jpeg_quality": 100, "seed": 77}))
    make_pictures(job.folder, "a.png")
    job.save("webp", format="webp", quality=60)
    job.save("jpg", format="jpg", suffix="_j")
    assert job.run() == "Finished: 1 of 1."
    assert job.results() == ["a.png", "a.webp", "a_j.jpg"]
    png = Image.open(job.output / "a.png").info
    assert json.loads(png["prompt"]) == job.prompt
    assert json.loads(png["workflow"]) == WORKFLOW
    assert json.loads(png["eam_folder"]) == {"name": "a.png"}
    for name in ("a.webp", "a_j.jpg"):
        exif = Image.open(job.output / name).getexif()
        assert json.loads(exif[0x0110].removeprefix("prompt:")) == job.prompt
        assert json.loads(exif[0x010F].removeprefix("workflow:")) == WORKFLOW
    # The prompt in the file makes the file once more.
    before = pixels(job.output / "a.png")
    job.prompt = json.loads(png["prompt"])
    job.run(existing="overwrite")
    assert np.array_equal(pixels(job.output / "a.png"), before)


def test_subfolders_globs_and_names_that_clash(server: ComfyServer) -> None:
    job = Job(server, subfolders=True, pattern="*.jpg;*.png;*.bmp")
    make_pictures(job.folder, "a.jpg", "a.png", "x/a.bmp", "x/y/2.png", "x/y/10.png", "left.webp")
    job.save("save", format="png", suffix="_x4")
    assert job.run() == "Finished: 5 of 5."
    assert job.results() == ["a_x4.png", "a_x4_jpg.png", "x/a_x4.png", "x/y/10_x4.png", "x/y/2_x4.png"]
    assert [line["name"] for line in job.lines("done")] == ["a.jpg", "a.png", "x/a.bmp", "x/y/2.png", "x/y/10.png"]
    assert np.array_equal(pixels(job.output / "x/y/10_x4.png"), 255 - pixels(job.folder / "x/y/10.png"))


def test_bad_pictures_and_failing_nodes_are_listed_and_the_rest_goes_on(server: ComfyServer) -> None:
    # A blur cannot be wider than its picture.
    job = Job(server, ("ImageBlur", {"blur_radius": 20, "sigma": 1.0}))
    make_pictures(job.folder, "1.png", "3.png", "5.png")
    make_pictures(job.folder, "2.png", "6.png", size=(18, 18))
    (job.folder / "4.png").write_bytes((job.folder / "1.png").read_bytes()[:200])
    (job.folder / "7.png").symlink_to("/etc/hostname")
    assert job.run() == "Finished: 3 of 7, 4 failed; eam_folder.jsonl in the output folder says why."
    assert job.results() == ["1.png", "3.png", "5.png"]
    errors = {line["name"]: line["error"] for line in job.lines("failed")}
    assert sorted(errors) == ["2.png", "4.png", "6.png", "7.png"]
    assert errors["2.png"].startswith("ImageBlur: ")
    assert "truncated or damaged" in errors["4.png"] and "leads outside" in errors["7.png"]
    # Mended ones are made when the folder is queued again, and only these.
    make_pictures(job.folder, "2.png", "4.png")
    (job.folder / "7.png").unlink()
    assert job.run() == "Finished: 5 of 6, 1 failed; eam_folder.jsonl in the output folder says why."
    assert [line["name"] for line in job.lines("done")] == ["1.png", "3.png", "5.png", "2.png", "4.png"]


def test_one_picture_for_each_run(server: ComfyServer) -> None:
    job = Job(server, go_on=False, existing="overwrite")
    make_pictures(job.folder, "1.png", "2.png")
    assert job.run() == "1.png begun; 0 of 2 finished."
    assert job.results() == ["1.png"]
    assert job.run() == "2.png begun; 1 of 2 finished."
    assert job.run() == "Finished: 2 of 2."
    assert [line["name"] for line in job.lines("done")] == ["1.png", "2.png"]
    assert job.run() == "1.png begun; 0 of 2 finished."


def test_runs_queued_side_by_side_share_the_folder(server: ComfyServer) -> None:
    job = Job(server)
    make_pictures(job.folder, *(f"{number}.png" for number in range(8)))
    for _ in range(3):
        job.queue()
    assert job.run() in ("Finished: 8 of 8.", "Nothing is left to do: all 8 pictures are finished.")
    assert [line["name"] for line in job.lines("done")] == [f"{number}.png" for number in range(8)]


def test_batches_and_transparency(server: ComfyServer) -> None:
    job = Job(server, ("JoinImageWithAlpha", {"alpha": ["load", 3]}), ("RepeatImageBatch", {"amount": 2}))
    grey = np.full((20, 30, 4), 100, np.uint8)
    grey[..., 3] = np.where(np.arange(30) < 15, 0, 255)
    Image.fromarray(grey).save(job.folder / "a.png")
    assert job.run() == "Finished: 1 of 1."
    assert job.results() == ["a.png", "a_2.png"]
    alpha = pixels(job.output / "a.png")[..., 3]
    assert (alpha[:, :14] == 0).all() and (alpha[:, 16:] == 255).all()


def test_names_that_are_no_text(server: ComfyServer) -> None:
    job = Job(server)
    make_pictures(job.folder, "a.png")
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(job.folder / "a.png", job.folder / name)
    assert job.run() == "Finished: 2 of 2."
    assert [line["name"] for line in job.lines("done")] == ["a.png", name]
    assert np.array_equal(pixels(job.output / name), 255 - pixels(job.folder / name))


def test_metadata_that_a_jpeg_has_no_room_for(server: ComfyServer) -> None:
    job = Job(server)
    make_pictures(job.folder, "a.jpg")
    job.prompt["note"] = {"class_type": "PrimitiveString", "inputs": {"value": "x" * 70_000}}
    job.run()
    texts = [run["outputs"].get("save", {}).get("text") for run in server._get("/history").json().values()][-2:]
    assert texts[0] == ["1 of 1: a.jpg, without its prompt: a JPEG holds 64 KB of metadata"]
    exif = Image.open(job.output / "a.jpg").getexif()
    assert 0x0110 not in exif and json.loads(exif[0x010F].removeprefix("workflow:")) == WORKFLOW


def test_another_folder_in_the_same_output_folder(server: ComfyServer) -> None:
    job, other = Job(server), Job(server)
    for one in (job, other):
        make_pictures(one.folder, "1.png", "2.png", size=(40, 30) if one is other else (32, 24))
    assert job.run() == "Finished: 2 of 2."
    before = pixels(job.output / "1.png")
    for existing in ("skip", "overwrite"):
        problem = other.error(output_folder=job.output.name, existing=existing)
        assert problem.startswith("1.png: expected a name") and problem.endswith("choose another output_folder")
    # Both in one graph: the one that comes second is refused.
    both = Job(server)
    make_pictures(both.folder, "1.png", "2.png")
    both.second(other.folder.name, both.output.name)
    assert "choose another output_folder" in both.error()
    assert np.array_equal(pixels(job.output / "1.png"), before)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"folder": "../secret"}, "folder: expected a folder inside ComfyUI's input folder, got '../secret'"),
        ({"folder": "/etc"}, "folder: expected a folder inside ComfyUI's input folder, got '/etc'"),
        ({"folder": "C:\\Windows"}, "folder: expected a folder inside"),
        ({"folder": "linked"}, "folder: expected a folder inside"),
        ({"folder": "missing"}, "missing: expected a folder of pictures, found none there; check its name"),
        ({"folder": "empty"}, "empty: expected a folder with pictures that match '*', found none; check the path"),
        ({"output_folder": "a\\..\\..\\b"}, "output_folder: expected a folder inside ComfyUI's output folder"),
        ({"output_folder": "a\nb"}, "output_folder: expected one line of text"),
        ({"output_folder": "a_file"}, "a_file: expected an output folder that can be written"),
    ],
)
def test_folders_that_are_refused(server: ComfyServer, inputs: dict[str, Any], message: str) -> None:
    job = Job(server)
    make_pictures(job.folder, "1.png")
    (server.work_dir / "input" / "empty").mkdir(exist_ok=True)
    (server.work_dir / "output").mkdir(exist_ok=True)
    (server.work_dir / "output" / "a_file").touch()
    link = server.work_dir / "input" / "linked"
    link.symlink_to("/etc")
    answer = job.error(**inputs)
    link.unlink()  # other tests copy the input folder
    assert answer.startswith(message) and "\n" not in answer
    assert not job.output.exists()


def test_nodes_that_do_not_fit_together(server: ComfyServer) -> None:
    job = Job(server)
    make_pictures(job.folder, "1.png")
    job.save("another", format="png")
    assert "1.png: expected one EAM Save Folder to write this file, got two; give one a suffix" in job.error()
    job.save("another", suffix="../x")
    assert job.error().startswith("suffix: expected at most 100 characters")
    assert not job.output.exists()
