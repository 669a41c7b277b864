"""Which folders a graph may use, and which names are refused, on this system and on Windows."""

import os
from pathlib import Path

import pytest

from eam_core.errors import FolderError
from eam_core.folder_places import Root, allowed_folders, check_name, check_suffix, resolve_folder


def test_paths(tmp_path: Path) -> None:
    root = Root(path=tmp_path / "root", name="ComfyUI's input folder", widget="folder")
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "other")
    assert resolve_folder("", root) == tmp_path / "root"
    assert resolve_folder("a\\b", root) == resolve_folder(" ./a//b/ ", root) == tmp_path / "root" / "a" / "b"
    outside = (
        str(tmp_path / "other"),
        "../other",
        "a/../../other",
        "a\\..\\..\\other",
        "link",
        "/",
        "C:\\x",
        "C:x",
        "//x/y",
    )
    for text in outside:
        with pytest.raises(FolderError, match="folder: expected a folder inside ComfyUI's input folder, got"):
            resolve_folder(text, root)
    for text in ("a\nb", "a\0b"):
        with pytest.raises(FolderError, match="expected one line"):
            resolve_folder(text, root)
    for text in ("NUL", "a/com1.txt"):
        with pytest.raises(FolderError, match="a name that Windows can hold too"):
            resolve_folder(text, root)
    allowed = allowed_folders(f"{tmp_path / 'other'}{os.pathsep}{os.pathsep}")
    assert allowed == (tmp_path / "other",)
    assert resolve_folder(str(tmp_path / "other" / "new"), root, allowed) == tmp_path / "other" / "new"
    assert resolve_folder("link", root, allowed) == tmp_path / "other"
    with pytest.raises(FolderError, match="expected a folder inside"):
        resolve_folder(str(tmp_path / "others"), root, allowed)
    with pytest.raises(FolderError, match="expected absolute paths"):
        allowed_folders("relative")


def test_shares_on_windows_are_refused_before_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(path=tmp_path, name="ComfyUI's input folder", widget="folder")
    looked_at = []
    monkeypatch.setattr(os.path, "realpath", lambda path: looked_at.append(str(path)) or str(path))
    for text in (r"\\host\share", "//host/share/a", r"\/host\share", r"\\?\UNC\host\share", r"\\allowed\other"):
        with pytest.raises(FolderError, match="expected a folder inside ComfyUI's input folder"):
            resolve_folder(text, root, [Path("//allowed/photos")], windows=True)
    assert not looked_at
    resolve_folder("//allowed/Photos/new", root, [Path("//allowed/Photos")], windows=True)
    assert looked_at[0] == "//allowed/Photos/new"


def test_names_and_suffixes_that_windows_lacks() -> None:
    check_name("what?", "folder", windows=False)
    for name in ("what?", "dot.", "a:b"):
        with pytest.raises(FolderError):
            check_name(name, "folder", windows=True)
    check_suffix("_x4 (new)")
    for suffix in ("/../x", "\\x", "a\nb", "a:b", "x" * 101):
        with pytest.raises(FolderError, match="suffix: expected at most 100 characters"):
            check_suffix(suffix)
