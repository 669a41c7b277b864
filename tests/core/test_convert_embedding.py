"""Prompt embeddings from pickles to safetensors: tensors only, whatever else is inside, and what is refused."""

import pickle
from pathlib import Path

import pytest
import torch

from eam_core.cli import main
from eam_core.companions import read_embeddings


class Evil:
    """Unpickled, it would leave a mark."""

    mark = ""

    def __reduce__(self):
        return (exec, (f"open({self.mark!r}, 'w').close()",))


def convert(*arguments: Path | str) -> int:
    return main(["convert-embedding", *map(str, arguments)])


def test_convert_embedding(tmp_path, capsys):
    prompt, pool = torch.randn(1, 3, 4096).half(), torch.randn(2048)
    torch.save(prompt, tmp_path / "p.pt")
    torch.save(pool, tmp_path / "q.pt")
    assert convert(tmp_path / "p.pt", tmp_path / "q.pt", tmp_path / "out.safetensors") == 0
    assert "3 tokens" in capsys.readouterr().out
    text = read_embeddings(tmp_path / "out.safetensors")
    assert torch.equal(text.context, prompt.float()) and torch.equal(text.pooled, pool[None])


@pytest.mark.parametrize("inside", ["alone", "in a list", "plain pickle"])
def test_pickle_with_code_does_not_run(tmp_path, capsys, inside):
    mark = tmp_path / "ran"
    Evil.mark = str(mark)
    if inside == "plain pickle":
        (tmp_path / "p.pt").write_bytes(pickle.dumps(Evil()))
    else:
        torch.save(Evil() if inside == "alone" else [torch.zeros(1, 3, 4096), Evil()], tmp_path / "p.pt")
    torch.save(torch.zeros(2048), tmp_path / "q.pt")
    assert convert(tmp_path / "p.pt", tmp_path / "q.pt", tmp_path / "out.safetensors") == 2
    assert "was not run" in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "out.safetensors").exists()
    torch.load(tmp_path / "p.pt", weights_only=False) if inside != "plain pickle" else pickle.loads(
        (tmp_path / "p.pt").read_bytes()
    )
    assert mark.exists(), "this pickle would have left no mark"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1, 3, 1024), r"\[1, tokens, 4096\] .* got torch.float32 \[1, 3, 1024\]"),
        (torch.zeros(2, 3, 4096), r"\[2, 3, 4096\]"),
        (torch.zeros(1, 0, 4096), "its numbers are not all there"),
        (torch.zeros(1, 3, 4096, dtype=torch.int64), "tensor of floats"),
        ({"prompt_embeds": torch.zeros(1)}, "something that is not a tensor and was not run"),
        (None, "expected a file at"),
    ],
)
def test_convert_embedding_refuses_anything_else(tmp_path, capsys, value, message):
    import re

    if value is not None:
        torch.save(value, tmp_path / "p.pt")
    torch.save(torch.zeros(1, 2048), tmp_path / "q.pt")
    assert convert(tmp_path / "p.pt", tmp_path / "q.pt", tmp_path / "out.safetensors") == 2
    assert re.search(message, capsys.readouterr().err)


def test_convert_embedding_refuses_swapped_files_and_damaged_ones(tmp_path, capsys):
    torch.save(torch.zeros(1, 3, 4096), tmp_path / "p.pt")
    torch.save(torch.zeros(1, 2048), tmp_path / "q.pt")
    assert convert(tmp_path / "q.pt", tmp_path / "p.pt", tmp_path / "out.safetensors") == 2
    assert "give prompt_embeds.pt first" in capsys.readouterr().err
    for content in (b"", b"junk" * 9, (tmp_path / "q.pt").read_bytes()[:-40]):
        (tmp_path / "r.pt").write_bytes(content)
        assert convert(tmp_path / "p.pt", tmp_path / "r.pt", tmp_path / "out.safetensors") == 2
        assert "r.pt is damaged" in capsys.readouterr().err
    assert convert(tmp_path / "p.pt", tmp_path / "q.pt", tmp_path / "out.pt") == 2
    assert "ending in .safetensors" in capsys.readouterr().err
