"""What a review of batches found in stores that rename, and in workers with other weights than the driver's."""

import fsspec
import pytest

from eam_core.batch_remote import RemoteFolder
from eam_core.batch_worker import PictureWorker, WorkerPlan
from eam_core.job_model import ModelChoice
from eam_core.restore_config import RestoreConfig


@pytest.mark.parametrize(("protocol", "renames"), [("sftp", True), ("smb", False), ("webhdfs", False), ("s3", False)])
def test_only_a_rename_that_replaces_is_used(protocol, renames):
    moved = []

    class Service(fsspec.get_filesystem_class("memory")):
        store, pseudo_dirs, cachable = {}, [""], False

        def mv(self, path1, path2, **options):
            moved.append(path2)
            if not renames and self.exists(path2):
                raise OSError("STATUS_OBJECT_NAME_COLLISION")
            self.pipe_file(path2, self.cat_file(path1))
            self.rm_file(path1)

    Service.protocol = protocol
    folder = RemoteFolder(Service(), "/out", f"{protocol}://host/out")
    for data in (b"old", b"new"):
        folder.write("a.png", data)
    assert folder.sizes() == {"a.png": 3} and folder.peek("a.png") == b"new"
    assert moved == ["/out/a.png"] * 2 * renames


def test_worker_refuses_other_weights_than_the_drivers(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"one")
    model = ModelChoice(**dict.fromkeys(("base", "control", "autoencoder"), str(tmp_path / "w.safetensors")))
    monkeypatch.setattr(ModelChoice, "load", lambda self, config: (None, []))
    places = {"input": str(tmp_path), "output": str(tmp_path)}
    plan = WorkerPlan(**places, config=RestoreConfig(), model=model, threads=0, weights=model.fingerprint())
    assert PictureWorker(plan.text()).handle({"do": "load"})["state"] == "ready"
    (tmp_path / "w.safetensors").write_bytes(b"two")
    answer = PictureWorker(plan.text()).handle({"do": "load"})
    assert answer["state"] == "unusable" and "the driver's weights" in answer["error"] and "base" in answer["error"]
