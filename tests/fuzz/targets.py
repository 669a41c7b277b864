"""What is fuzzed: functions that take the bytes of one case and a folder, and do with them what the library does.

A target returns for a case that was accepted; an `EAMError` refuses it. Anything else is a fault.
"""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import samples
import strategies
import torch
from hypothesis import strategies as st

from eam_core.batch_manifest import MANIFEST, Manifest, check_settings
from eam_core.batch_store import LocalFolder
from eam_core.captioning.address import parse_address
from eam_core.captioning.cache import CaptionCache
from eam_core.captioning.caption import read_answer
from eam_core.captioning.chat import answering_model, first_model, read_completion, server_message
from eam_core.captioning.exchange import Dropped
from eam_core.captioning.model_folder import open_folder
from eam_core.checkpoint import build_autoencoder, build_control, build_image_prompt, build_mmdit, with_settings
from eam_core.cli_convert import _read as read_embedding
from eam_core.companions import read_companions
from eam_core.control_files import differing_base, read_control
from eam_core.diffusers_keys import read_transformer
from eam_core.errors import EAMError
from eam_core.folder_batch import Batch, BatchSettings
from eam_core.folder_names import Saver
from eam_core.folder_places import Root, check_suffix, resolve_folder
from eam_core.folder_report import REPORT_NAME
from eam_core.images import load_image, resize, save_image
from eam_core.loading import spec_of
from eam_core.pretrained_checks import check_folder
from eam_core.safetensors_header import DTYPES
from eam_core.weight_files import read_metadata, read_weights
from eam_core.weight_sets import weight_set

_MOST_DATA = 2**24  # bytes; headers that promise more get a shorter file


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of input.

    Attributes:
        name: of its corpus folder and its row in the table.
        run: does with a case what the library does.
        good: inputs that cases are made of.
        cases: how Hypothesis makes them.
    """

    name: str
    run: Callable[[bytes, Path], None]
    good: Callable[[], Sequence[bytes]]
    cases: Callable[[Sequence[bytes]], st.SearchStrategy[bytes]]


def checkpoint(data: bytes, folder: Path) -> None:
    """Read a weight file in every way that the library does, and build what it holds."""
    path = folder / "x.safetensors"
    path.write_bytes(data)
    _load(path)


def header(data: bytes, folder: Path) -> None:
    """Do the same with a header alone; the file gets as many bytes of zeros as it promises, within reason."""
    path = folder / "x.safetensors"
    try:
        fields = json.loads(data)
        promised = max(int(each["data_offsets"][1]) for name, each in fields.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        promised = 16
    with path.open("wb") as file:
        file.write(samples.file_of(data, b""))
        file.truncate(file.tell() + max(0, min(promised, _MOST_DATA)))
    _load(path)


def network(data: bytes, folder: Path) -> None:
    """Do the same with the tensors of a header one behind the other, so that shapes and names reach the builders."""
    try:
        fields = json.loads(data)
        place = 0
        for name, each in fields.items():
            if name != "__metadata__" and isinstance(each, dict):
                end = place + math.prod(each["shape"]) * DTYPES[each["dtype"]].itemsize
                each["data_offsets"], place = [place, end], end
        data = json.dumps(fields).encode()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        pass
    header(data, folder)


def _load(path: Path) -> None:
    read_metadata(path)
    read_weights(path, device="meta")
    refused: list[EAMError] = []

    def attempt(what: Callable[[], Any]) -> Any:
        # One kind of file is refused by all loaders but its own, so each of them has its turn.
        try:
            return what()
        except EAMError as error:
            check_sentence(error)
            refused.append(error)
            return None

    attempt(lambda: spec_of(path))
    base = attempt(lambda: read_transformer(path))
    made = [None if base is None else attempt(lambda: build_mmdit(base, "x"))]
    made.append(attempt(lambda: build_autoencoder(read_weights(path), "x")))
    attempt(lambda: read_control(path, device="meta"))
    control = attempt(lambda: read_control(path))
    if control is not None:
        differing_base(control, control.base_samples.get)
        made.append(attempt(lambda: build_control(control.tensors, "x")))
        attempt(lambda: build_image_prompt(control.tensors, "x"))
        if made[-1] is not None:
            attempt(lambda: with_settings(made[-1], {"conv_scale": "nan"}))
            attempt(lambda: read_companions(path, control.tensors, made[-1].params))
    if refused and not any(module is not None for module in made):
        raise refused[-1]


def saved_tensor(data: bytes, folder: Path) -> None:
    """Read what `convert-embedding` is given."""
    (folder / "x.pt").write_bytes(data)
    read_embedding(folder / "x.pt", "[1, 2048]", 2, 2048)


def shard_index(data: bytes, folder: Path) -> None:
    """Find the shards that an index lists."""
    index = folder / "x.safetensors.index.json"
    index.write_bytes(data)
    for number in (1, 2):
        (folder / f"x-0000{number}-of-00002.safetensors").touch()
    for file in weight_set(index):
        assert file.parent == folder, file


def model_config(data: bytes, folder: Path) -> None:
    """Look at the settings of a network's folder before transformers would."""
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(samples.file_of(b"{}", b""))
    check_folder(folder, "a model")
    found = open_folder(folder)
    assert found.numbers == 0
    found.identify(lambda: None)


def folder_list(data: bytes, folder: Path) -> None:
    """Go on with a folder whose list of results is given, up to the last picture."""
    places = _folders(folder)
    (places["output"] / REPORT_NAME).write_bytes(data)
    _pass(BatchSettings(source="in", savers=(Saver(key="1"),), subfolders=True, **places))


def batch_list(data: bytes, folder: Path) -> None:
    """Go on with a batch whose manifest is given."""
    (folder / MANIFEST).write_bytes(data)
    manifest = Manifest(LocalFolder(folder), [MANIFEST])
    for record in manifest.records.values():
        assert ".." not in record["output"].split("/"), record
    check_settings(manifest, {"scale": 4.0, "restore": {"steps": 8}})
    manifest.start({"scale": 4.0}, anew=False)
    manifest.add("done", "1.png", output="1.png")


def folder_text(data: bytes, folder: Path) -> None:
    """Use what a workflow writes into the folder nodes."""
    try:
        fields = json.loads(data)
        texts = {name: str(fields.get(name, "")) for name in ("folder", "output_folder", "pattern", "format", "suffix")}
    except (ValueError, AttributeError, RecursionError):
        return
    places = _folders(folder)
    roots = (
        Root(path=places["folder"], name="in", widget="folder"),
        Root(path=places["output"], name="out", widget="o"),
    )
    for windows in (True, False):
        given = [resolve_folder(texts[key], root, (), windows) for key, root in zip(("folder", "output_folder"), roots)]
    check_suffix(texts["suffix"])
    kind = texts["format"] if texts["format"] in ("as input", "png", "jpg", "webp") else "png"
    saver = Saver(key="1", format=kind, suffix=texts["suffix"])  # type: ignore[arg-type]
    _pass(
        BatchSettings(
            folder=given[0], output=given[1], source=texts["folder"], pattern=texts["pattern"], savers=(saver,)
        )
    )


def _folders(folder: Path) -> dict[str, Path]:
    places = {"folder": folder / "in", "output": folder / "out"}
    for path in (*places.values(), folder / "in" / "sub"):
        path.mkdir(exist_ok=True)
    for name in ("1.png", "2.png", "sub/1.png"):
        if not (places["folder"] / name).exists():
            save_image(torch.zeros(1, 3, 16, 16), places["folder"] / name)
    return places


def _pass(settings: BatchSettings) -> None:
    batch = Batch(settings)
    while work := batch.pick():
        try:
            for saver in settings.savers:
                batch.save(work, saver.key, [batch.load(work)], {})
        except EAMError as error:
            check_sentence(error)
            batch.fail(work, str(error))
    batch.end("finished")


def picture(data: bytes, folder: Path) -> None:
    """Read a picture, and write it again."""
    path = folder / "x.png"
    path.write_bytes(data)
    read = load_image(path)
    assert read.rgb.isfinite().all() and read.rgb.min() >= 0 and read.rgb.max() <= 1
    if read.rgb.numel() < 2**20:
        resize(read.rgb, (20, 20))
        save_image(read, folder / "y.jpg")


def answer(data: bytes, folder: Path) -> None:
    """Read a captioner's answer, an endpoint's reply, a caption that was kept, and an endpoint's address."""
    text = data.decode(errors="surrogatepass" if data.isascii() else "replace")
    refused = []
    for read in (
        lambda: read_answer(text, "sa"),
        lambda: read_answer(text, "da"),
        lambda: read_completion(data),
        lambda: (first_model(data), answering_model(data), server_message(data)),
        lambda: parse_address(text),
    ):
        try:
            read()
        except (EAMError, Dropped) as error:  # the second is asked again, and then refused
            refused.append(error)
    cache = CaptionCache(folder)
    path = cache._path({})
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    kept = cache.read({})
    if kept is not None:
        cache.write({}, kept)
        assert cache.read({}) == kept
    if len(refused) == 5 and kept is None:
        raise refused[0]


def check_sentence(error: EAMError) -> None:
    """Fail unless a refusal is one line of a bearable length."""
    text = str(error)
    assert text and "\n" not in text and "\x1b" not in text, f"no sentence: {text[:300]!r}"
    assert len(text) < 3000, f"a sentence of {len(text)} characters: {text[:300]!r}"


def quiet(target: Target, data: bytes, folder: Path) -> bool:
    """Run a case without warnings; return whether it was accepted.

    Raises:
        Exception: a fault.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.run(data, folder)
        except EAMError as error:
            check_sentence(error)
            return False
    return True


TARGETS = {
    target.name: target
    for target in (
        Target(name="checkpoint", run=checkpoint, good=samples.checkpoints, cases=strategies.broken_bytes),
        Target(name="network", run=network, good=samples.headers, cases=strategies.broken_json),
        Target(name="header", run=header, good=samples.headers, cases=strategies.broken_json),
        Target(name="saved_tensor", run=saved_tensor, good=samples.saved_tensors, cases=strategies.broken_bytes),
        Target(name="shard_index", run=shard_index, good=samples.indexes, cases=strategies.broken_json),
        Target(name="model_config", run=model_config, good=samples.configs, cases=strategies.broken_json),
        Target(
            name="folder_list",
            run=folder_list,
            good=samples.manifests,
            cases=lambda good: strategies.broken_json(good, lines=True),
        ),
        Target(
            name="batch_list",
            run=batch_list,
            good=samples.manifests,
            cases=lambda good: strategies.broken_json(good, lines=True),
        ),
        Target(name="folder_text", run=folder_text, good=samples.folder_texts, cases=strategies.broken_json),
        Target(name="picture", run=picture, good=samples.pictures, cases=strategies.broken_bytes),
        Target(name="answer", run=answer, good=samples.answers, cases=strategies.broken_bytes),
    )
}
