"""The process of a rank, which runs checks of distributed_workers.py, _stages.py, _offloaded.py and _storages.py.

`python distributed_ranks.py RANK NAME ...` runs these in the current folder, one after another, and appends a line to
RANK.jsonl for each. Every check has a process group of its own, so that one that fails, and leaves the other rank in
the middle of it, spoils no later one.
"""

import datetime
import faulthandler
import gc
import json
import sys
import traceback
from pathlib import Path

import distributed_offloaded  # noqa: F401 (its checks)
import distributed_stages  # noqa: F401
import distributed_storages  # noqa: F401
import torch
import torch.distributed as dist
from distributed_workers import CHECKS

STUCK = datetime.timedelta(seconds=30)  # after which a collective whose other rank does not come is an error


def run_checks(rank, names):
    """Run those of these checks that the rank takes part in, and write its traceback, or "ok"."""
    faulthandler.enable()
    torch.set_num_threads(1)
    with open(f"{rank}.jsonl", "w", buffering=1) as lines:
        for number, name in enumerate(names):
            ranks = CHECKS[name].ranks
            if rank >= ranks:
                continue
            outcome = "ok"
            try:
                store = dist.FileStore(str(Path(f"store{number}").absolute()), ranks)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=STUCK)
                CHECKS[name].run()
            except BaseException:  # as which torch's checkpoints raise their errors
                outcome = traceback.format_exc()
            lines.write(json.dumps([name, outcome]) + "\n")
            if dist.is_initialized():
                dist.destroy_process_group()
            if outcome != "ok":
                gc.collect()  # what of the group is left in frames, so that the other rank need not wait for it


if __name__ == "__main__":
    run_checks(int(sys.argv[1]), sys.argv[2:])
