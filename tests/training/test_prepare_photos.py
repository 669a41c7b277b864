"""Cutting crops from package contents, without a network: packages are laid out as their clients unpack them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from train import prepare_photos
from train.prepare_photos import PrepareError, Source, debian_licence, detail, detailed_crops, embedded_images, prepare

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: 16.04/sharp.jpg
Copyright: Jane Doe, 2018
License: CC-BY-4.0

Files: debian/*
Copyright: Someone
License: Expat

License: Expat
 Files: sharp.jpg
 License: of a text that must not be read
"""
SOURCE = Source(client="deb", package="some-photos", patterns=("usr/share/photos/*.jpg",), licence="GPL-2+ (package)")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path):
    """Return a cache that already holds the package: a sharp photo and a flat one."""
    folder = tmp_path / "cache" / "deb-some-photos"
    photos = folder / "usr/share/photos"
    photos.mkdir(parents=True)
    noise(2100, 1100).save(photos / "sharp.jpg")
    Image.new("RGB", (1100, 1100), "grey").save(photos / "flat.jpg")
    notice = folder / "usr/share/doc/some-photos"
    notice.mkdir(parents=True)
    (notice / "copyright").write_text(COPYRIGHT)
    (folder / "FETCHED").write_text("some-photos_1.0_all.deb")
    return tmp_path / "cache"


def test_detail_is_the_mean_laplacian():
    checker = np.indices((20, 20)).sum(0) % 2 * 10
    assert detail(np.repeat(checker[..., None], 3, axis=2)) == pytest.approx(40, rel=1e-5)
    assert detail(np.full((20, 20, 3), 128)) == pytest.approx(0, abs=1e-3)


def test_crops_lie_inside_at_both_scales_and_do_not_overlap():
    photo = noise(2100, 1100)
    crops = detailed_crops(photo, scales=(1, 2), min_detail=6.0)
    assert [crop["scale"] for crop in crops] == ["1/1"] * 8 + ["1/2"] * 2
    for crop in crops:
        assert crop["image"].size == (512, 512)
        if crop["scale"] == "1/1":
            box = (crop["x"], crop["y"], crop["x"] + 512, crop["y"] + 512)
            assert box[2] <= 2100 and box[3] <= 1100
            assert np.array_equal(np.asarray(photo.crop(box)), np.asarray(crop["image"]))
    assert len({(crop["scale"], crop["x"], crop["y"]) for crop in crops}) == 10
    assert detailed_crops(noise(500, 900), scales=(1,), min_detail=6.0) == []


def test_training_set_keeps_the_detailed_crops_with_their_origin(cache, tmp_path):
    out = tmp_path / "out"
    records = prepare((SOURCE,), out, cache)
    assert json.loads((out / "photos.json").read_text()) == records
    assert {path.name for path in out.iterdir()} == {"photos.json", *(record["name"] for record in records)}
    assert len(records) == 10
    first = records[0]
    assert first["path"] == "usr/share/photos/sharp.jpg"
    assert first["package"] == "some-photos_1.0_all.deb"
    assert first["licence"] == "CC-BY-4.0, Jane Doe, 2018"
    with Image.open(out / first["name"]) as image:
        assert (image.format, image.size) == ("JPEG", (512, 512))


def test_licence_comes_from_the_paragraph_that_names_the_file():
    assert debian_licence(COPYRIGHT, "usr/share/photos/sharp.jpg") == "CC-BY-4.0, Jane Doe, 2018"
    assert debian_licence(COPYRIGHT, "usr/share/photos/other.jpg") is None


def test_photos_are_found_inside_container_files():
    small, large = encode(noise(64, 64), "JPEG"), encode(noise(96, 80), "JPEG")
    (found,) = embedded_images(b"head" + small + b"\xff\xd8\xff not one" + large + b"tail")
    assert Image.open(io.BytesIO(found)).size == (96, 80)
    lossy, lossless = encode(noise(64, 48), "WEBP"), encode(noise(32, 32), "WEBP", lossless=True)
    assert embedded_images(b"qres" + lossless + lossy + b"tail") == [lossy]
    assert embedded_images(b"nothing here") == []


def test_a_missing_client_and_a_failing_one_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_photos.shutil, "which", lambda name: None)
    assert prepare_photos.main(["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]) == 2
    assert "expected the program 'apt-get' on the PATH" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(PrepareError, match="got: no such package"):
        prepare_photos._run(["sh", "-c", "echo no such package >&2; exit 1"], tmp_path)
    assert not list((tmp_path / "cache").iterdir())


def test_a_package_without_the_photos_is_named(cache, tmp_path):
    other = Source(client="deb", package="some-photos", patterns=("usr/share/none/*.jpg",), licence="")
    with pytest.raises(PrepareError, match="expected photos usr/share/none"):
        prepare((other,), tmp_path / "out", cache)
