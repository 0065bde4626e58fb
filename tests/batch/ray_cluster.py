"""A Ray cluster on this machine, of several nodes' worth of processes: `python -m tests.batch.ray_cluster NODES`.

Each node has one core for Ray, and with --pinned it is truly kept to one. Prints its address, and ends when stdin does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STORE_BYTES = 200 * 1024**2  # of each node


def main(nodes: int, *options: str) -> None:
    """Start it, and wait."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:  # short, for its sockets
        own: dict[str, Any] = {"num_cpus": 1, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        _keep_to(0, options)
        cluster = Cluster(initialize_head=True, head_node_args=own | {"temp_dir": place})
        for number in range(1, nodes):
            _keep_to(number, options)
            cluster.add_node(**own)
        print(cluster.address, flush=True)
        sys.stdin.read()
        cluster.shutdown()  # type: ignore[no-untyped-call,unused-ignore]


def _keep_to(core: int, options: tuple[str, ...]) -> None:
    """What is started from here on runs on one core."""
    if "--pinned" in options:
        os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


@contextmanager
def running(nodes: int, *options: str) -> Iterator[str]:
    """The address of a cluster that ends with the block."""
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "tests.batch.ray_cluster", str(nodes), *options]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command,
        cwd=root,
        env=quiet,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = next((line.strip() for line in process.stdout if ":" in line), "")
        assert address, "the cluster did not start"
        yield address


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
