"""``python -m data_prep.index``: makes or refreshes the indexes of shards that lie there already.

For tars that hold our records (``KEY.json`` with ``text``, ``language`` …, see
``qwen3asr_train/data/shards.py``), copied, rewritten or made elsewhere.
"""

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.command import guarded
from data_prep.samples import start_worker, usable_cores
from qwen3asr_train.data.shards import find_shards, write_index
from qwen3asr_train.data.tars import entries_of_tar
from qwen3asr_train.errors import UserError

_DESCRIPTION = """\
Make or refresh the index beside each shard that holds our records (KEY.json with "text" and
"language", and audio). Samples that cannot be used are left out of the index, and named."""


@dataclass(frozen=True)
class _Indexed:
    shard: str
    samples: int = 0
    seconds: float = 0.0
    bad: list[tuple[str, str]] = field(default_factory=list)  # key, reason
    failure: str | None = None  # the tar cannot be used at all


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 2 when a tar could not be indexed."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.index", description=_DESCRIPTION,
        epilog="example:\n  python -m data_prep.index shards/mine 'more/*.tar'",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", metavar="SHARD", help="tars, folders of tars or globs")
    parser.add_argument("--workers", type=int, default=usable_cores(), metavar="N",
                        help="processes (default: one per usable core, %(default)s)")
    args = parser.parse_args(argv)
    return guarded(lambda: _index(find_shards(args.shards), args.workers),
                   "interrupted; indexes are whole or as they were")


def _index(shards: list[str], workers: int) -> int:
    results: list[_Indexed] = []
    for result in _all_indexed(shards, min(workers, len(shards))):
        results.append(result)
        for key, reason in result.bad:
            print(f"bad: {reason}" if key in reason else f"bad: {key}: {reason}", file=sys.stderr)
        if result.failure is None:
            print(f"{result.shard}: {result.samples} samples, {result.seconds / 3600:.2f} hours, "
                  f"{len(result.bad)} bad")
        else:
            print(f"error: {result.failure}", file=sys.stderr)
    failed = [result.shard for result in results if result.failure]
    print(f"indexed {len(results) - len(failed)} of {len(results)} shards: "
          f"{sum(r.samples for r in results)} samples, "
          f"{sum(r.seconds for r in results) / 3600:.2f} hours, "
          f"{sum(len(r.bad) for r in results)} bad")
    if failed:
        raise UserError(f"not indexed: {', '.join(failed)}")
    return 0


def _all_indexed(shards: list[str], workers: int):
    if workers <= 1:
        yield from map(_indexed, shards)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker, (context.Event(),)) as pool:
        try:
            yield from pool.map(_indexed, shards)
        finally:
            pool.shutdown(cancel_futures=True)


def _indexed(shard: str) -> _Indexed:
    """Index one shard. Failures are returned, so that the other shards are still done."""
    try:
        entries, bad = entries_of_tar(shard)
        if not entries:
            return _Indexed(shard, bad=bad, failure=f"{shard}: no sample that can be used")
        write_index(Path(shard), entries, os.path.getsize(shard))
    except UserError as error:
        return _Indexed(shard, failure=str(error))
    except OSError as error:
        return _Indexed(shard, failure=f"{shard}: {error.strerror or error}")
    return _Indexed(shard, len(entries), sum(entry.duration for entry in entries), bad)


if __name__ == "__main__":
    sys.exit(main())
