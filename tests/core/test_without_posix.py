"""Windows' traps on any machine: what only POSIX has, file names that differ in case alone, devices' names."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eam_core.errors import FolderError
from eam_core.folder_names import Saver, target_names
from eam_core.folder_places import check_name
from eam_core.images import load_image, save_image
from eam_core.jobs import pair_files

REPO = Path(__file__).resolve().parents[2]
CODE = [path for place in ("eam_core", "nodes", "train") for path in sorted((REPO / place).rglob("*.py"))]

# What a Python on Windows does not have; torch and the standard library have looked for theirs before.
WITHOUT_POSIX = """
import asyncio, concurrent.futures.process, importlib, os, pkgutil, signal, subprocess, sys, tempfile, types
import torch, multiprocessing.popen_spawn_posix, PIL.Image

for name in "fcntl resource pwd grp termios pty tty syslog".split():
    sys.modules[name] = None
gone = "fork forkpty getuid geteuid getgid getpgid killpg setpgrp setpgid setsid sysconf sched_getaffinity mkfifo chown"
for name in (gone + " uname O_NONBLOCK O_NOFOLLOW O_DIRECTORY").split():
    delattr(os, name)
for name in "SIGKILL SIGHUP SIGCHLD SIGALRM SIGUSR1 SIGUSR2 SIGQUIT SIGPIPE setitimer alarm".split():
    delattr(signal, name)

real, sys.platform = sys.platform, "win32"
locked = []
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, LK_UNLCK=0, locking=lambda *call: locked.append(call[1:]))
import eam_core.file_lock
sys.platform = real

for package in map(importlib.import_module, ("eam_core", "train")):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
with eam_core.file_lock.held(eam_core.file_lock.Path(sys.argv[2])):
    assert locked == [(2, 1)]
assert locked == [(2, 1), (0, 1)]
sys.exit(importlib.import_module("eam_core.cli").main(sys.argv[1:]))
"""


def test_everything_is_imported_and_a_photo_restored_without_posix(tmp_path: Path) -> None:
    save_image(torch.rand(1, 3, 16, 24), tmp_path / "photo.png")
    words = ["upscale", str(tmp_path / "photo.png"), str(tmp_path / "restored.png"), "--scale", "2"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_POSIX, *words], capture_output=True, encoding="utf-8", timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert load_image(tmp_path / "restored.png").rgb.shape[-2:] == (32, 48)


def test_files_are_replaced_not_renamed_over() -> None:
    # os.rename fails on Windows where the target exists.
    found = [
        path.relative_to(REPO).as_posix()
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("rename", "renames")
    ]
    assert found == ["train/prepare_photos.py"]  # a fresh folder is given a name that nothing has


def test_two_pictures_never_become_one_file(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.bmp", "a.png", "a.gif", "b.PNG", "B.png"):
        (source / name).write_bytes(b"")
    pairs = pair_files(source, tmp_path / "out")
    targets = {path.name: target.name for path, target in pairs}
    assert targets["a.png"] == "a.png" and targets["a.bmp"] == "a_bmp.png" and targets["a.gif"] == "a_gif.png"
    # Windows and macOS take b.PNG and B.png for one name.
    assert len({name.casefold() for name in targets.values()}) == len(targets) == 5


def test_results_in_a_list_are_named_with_slashes() -> None:
    names = target_names(["sub/a.tif", "sub/b.png"], [Saver(key="1", suffix="_x")])
    assert names == {"sub/a.tif": ("sub/a_x.png",), "sub/b.png": ("sub/b_x.png",)}


@pytest.mark.parametrize("name", ["CON", "nul.png", "com1", "LPT9.jpg", "AUX .txt", "COM\u00b9"])
def test_devices_names_are_refused_on_every_system(name: str) -> None:
    with pytest.raises(FolderError, match="Windows"):
        check_name(name, "folder", windows=False)


@pytest.mark.parametrize("name", ["a:b", "a?", "a*b", 'a"b', "a<b", "a|b", "trailing.", "trailing "])
def test_other_names_are_refused_on_windows_alone(name: str) -> None:
    check_name(name, "folder", windows=False)
    with pytest.raises(FolderError, match="Windows"):
        check_name(name, "folder", windows=True)


@pytest.mark.parametrize("name", ["console.png", "comma", "com10", "nullable.jpg", "a.b", ".hidden"])
def test_harmless_names_stay(name: str) -> None:
    check_name(name, "folder", windows=True)


def test_a_long_path_of_windows_is_read_and_written(tmp_path: Path) -> None:
    # 260 characters were Windows' limit; ours is the system's.
    folder = tmp_path
    while len(str(folder)) < 300:
        folder = folder / ("long" * 10)
    os.makedirs(folder)
    image = torch.rand(1, 3, 16, 16)
    save_image(image, folder / "photo.png")
    assert torch.allclose(load_image(folder / "photo.png").rgb, image, atol=0.5 / 255 + 1e-6)


def test_workers_need_no_fork(tmp_path: Path) -> None:
    # Windows and macOS make processes anew: what goes to a worker must be importable and picklable.
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        save_image(torch.rand(1, 3, 64, 80), photos / f"{number}.png")
    program = "import multiprocessing as mp, train.prepare_data as p; mp.set_start_method('spawn'); p.main()"
    for name, start in (("spawned", ["-c", program]), ("usual", ["-m", "train.prepare_data"])):
        words = [str(photos), "--out", str(tmp_path / name), "--crop-size", "64", "--num-workers", "2"]
        subprocess.run([sys.executable, "-P", *start, *words], check=True, timeout=120)
    spawned, usual = (sorted((tmp_path / name).glob("*.tar")) for name in ("spawned", "usual"))
    assert [shard.read_bytes() for shard in spawned] == [shard.read_bytes() for shard in usual] != []
