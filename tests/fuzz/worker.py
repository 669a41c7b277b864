"""One target in one process: run cases, note what became of them, and end if one hangs.

python tests/fuzz/worker.py TARGET --engine hypothesis|atheris --cases N --seed S --scratch FOLDER
"""

import argparse
import faulthandler
import json
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT = 20  # seconds for a case, on a busy machine
MEMORY = 4 * 2**30  # bytes of addresses that cases may add
sys.path.insert(0, str(HERE))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], default="hypothesis")
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, required=True)
    return parser.parse_args()


class Tally:
    """What became of the cases so far, written to a file now and then."""

    def __init__(self, options: argparse.Namespace) -> None:
        from guard import Guard, listing
        from targets import TARGETS, quiet

        self.options, self._quiet, self._listing = options, quiet, listing
        self.folder = options.scratch / "inside"
        self.folder.mkdir(parents=True)
        if options.target == "workflow":
            import host

            self.target = host.TARGET
            host.start(self.folder / "in")
        else:
            self.target = TARGETS[options.target]
        self.guard = Guard(self.folder)
        self.cases = self.accepted = self.refused = 0
        self.faults: list[dict[str, str]] = []
        self.slowest = 0.0
        self.began = time.monotonic()
        self.before = self._listing(options.scratch, self.folder)
        self.start_memory = _peak()
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def run(self, data: bytes) -> None:
        """Run one case; nothing it does comes out of here."""
        (self.options.scratch / "case").write_bytes(data)  # the one that ran, if the process ends
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        began = time.perf_counter()
        fault = ""
        with self.guard.watching():
            try:
                accepted = self._quiet(self.target, data, self.folder)
                self.accepted += accepted
                self.refused += not accepted
            except BaseException as error:  # a fault is whatever is no refusal
                fault = "".join(traceback.format_exception(error)[-4:])
        self.slowest = max(self.slowest, time.perf_counter() - began)
        faulthandler.cancel_dump_traceback_later()
        if fault or self.guard.found:
            self._note(data, fault or "; ".join(self.guard.found))
        self._clean()
        self.cases += 1
        if self.cases % 500 == 0 or self.cases >= self.options.cases:
            self.write()

    def write(self) -> None:
        """Write the numbers."""
        (self.options.scratch / "case").unlink(missing_ok=True)
        (self.options.scratch / "tally.json").unlink(missing_ok=True)
        strayed = self._listing(self.options.scratch, self.folder)
        for name in sorted(strayed.keys() ^ self.before.keys()):
            if not name.startswith(str(self.options.scratch / "fault")):
                self.faults.append({"file": "", "what": f"wrote or removed {name}"})
        fields = {name: getattr(self, name) for name in ("cases", "accepted", "refused", "faults", "slowest")}
        fields |= {"seconds": time.monotonic() - self.began, "memory": _peak(), "start_memory": self.start_memory}
        (self.options.scratch / "tally.json").write_text(json.dumps(fields, indent=1))

    def _note(self, data: bytes, what: str) -> None:
        # One of each kind is enough: thousands of cases may meet the same fault.
        kind = what.strip().splitlines()[-1][:60]
        if any(fault["what"].strip().splitlines()[-1][:60] == kind for fault in self.faults):
            return
        file = self.options.scratch / f"fault-{len(self.faults)}"
        file.write_bytes(data)
        self.faults.append({"file": str(file), "what": what})

    def _clean(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir() and path.name != "in":
                shutil.rmtree(path)
            elif not path.is_dir():
                path.unlink()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kept_cases(name: str) -> list[bytes]:
    """Return the cases of a target that once failed."""
    corpus = HERE / "corpus" / name
    return [path.read_bytes() for path in sorted(corpus.iterdir())] if corpus.is_dir() else []


def with_hypothesis(tally: Tally) -> None:
    """Draw cases from the target's strategy."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    good = tally.target.good()

    @seed(tally.options.seed)
    @settings(
        max_examples=tally.options.cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(tally.target.cases(good))
    def case(data: bytes) -> None:
        tally.run(data)

    for data in [*good, *kept_cases(tally.target.name)]:
        tally.run(data)
    case()
    tally.write()


def with_atheris(tally: Tally) -> None:
    """Let libFuzzer change good inputs where that reaches new code; ends the process."""
    import atheris

    seeds = tally.options.scratch.parent / f"{tally.options.scratch.name}-seeds"
    seeds.mkdir()
    for number, data in enumerate([*tally.target.good(), *kept_cases(tally.target.name)]):
        (seeds / str(number)).write_bytes(data)
    longest = max(2**12, 2 * max(len(data) for data in tally.target.good()))
    arguments = [f"-runs={tally.options.cases}", f"-seed={tally.options.seed + 1}", f"-max_len={longest}"]
    arguments += [
        f"-artifact_prefix={tally.options.scratch}/",
        f"-timeout={LIMIT}",
        "-rss_limit_mb=0",
        "-print_final_stats=0",
        "-verbosity=0",
        str(seeds),
    ]
    atheris.Setup([sys.argv[0], *arguments], tally.run)
    atheris.Fuzz()


def main() -> None:
    """Run from the command line."""
    options = parse()
    shutil.rmtree(options.scratch, ignore_errors=True)
    options.scratch.mkdir(parents=True)
    if options.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["eam_core", "PIL", "targets", "eam_pack"]):
            tally = Tally(options)
        with_atheris(tally)
    else:
        with_hypothesis(Tally(options))


if __name__ == "__main__":
    main()
