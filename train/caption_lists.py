"""Lists of pictures that a captioning run could not caption: DIR/failed.rankN.txt, a line per picture, and why."""

from contextlib import suppress
from pathlib import Path

from train.run_folder import write_text


def list_failed(folder: Path, rank: int, failed: dict[str, str]) -> None:
    """Write which pictures a process could not caption and why, or take an older list away.

    Raises:
        DiskError: it cannot be written.
    """
    path = folder / f"failed.rank{rank}.txt"
    lines = [f"{key}\t{' '.join(why.split())}\n" for key, why in failed.items()]
    if lines:
        # Names of files may be any bytes, which Python keeps in letters that no text file takes.
        write_text(path, "".join(lines).encode(errors="backslashreplace").decode())
    else:
        path.unlink(missing_ok=True)


def listed_keys(folder: Path) -> set[str]:
    """Return the pictures that earlier runs listed."""
    found: set[str] = set()
    for path in folder.glob("failed.rank*.txt"):
        with suppress(OSError):  # another process may take it away
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found |= {line.partition("\t")[0] for line in lines}
    return found


def drop_old_lists(folder: Path, world_size: int) -> None:
    """Take away lists of processes that there are no longer."""
    for path in folder.glob("failed.rank*.txt"):
        number = path.name.removeprefix("failed.rank").removesuffix(".txt")
        if number.isdecimal() and int(number) >= world_size:
            path.unlink(missing_ok=True)
