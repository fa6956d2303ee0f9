"""Counts or measures somebody else's forward pass: `python benchmarks/peer_count.py JSON`, for `benchmarks.scaling`.

As `benchmarks/peer_worker.py`, but the interpreter needs this project beside the peer, for its counters. The last line
it prints is {"rows": [...]}: a row a network and size with `operations`, or with what `scaling.passes` says of it, or
"skipped" with the reason. Networks have random weights, which change no count.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # instead of this folder, whose names a peer may use for its own

import torch

from benchmarks import counted, peer_worker, scaling


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a peer: keys peer, root, sizes (height, width); to measure also device, threads, longest (seconds)."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, request["root"])
    title, rows, sizes = request["peer"], [], [(height, width) for height, width in request["sizes"]]
    try:
        torch.manual_seed(0)
        for title, model, forward in peer_worker.NETWORKS[request["peer"]]():
            if "device" in request:
                torch.set_num_threads(request["threads"])
                device = torch.device(request["device"])
                model.eval().to(device)
                found = scaling.passes(title, forward, sizes, device, request["longest"])
                rows += [{"side": row.pop("model"), **row} for row in found]
                continue
            counts = list(counted.operations(model.eval(), forward, sizes))
            for (height, width), operations in zip(sizes, counts, strict=True):
                where = {"height": height, "width": width, "pixels": height * width}
                parameters = sum(p.numel() for p in model.parameters())
                rows.append({"side": title, **where, "parameters": parameters, "operations": operations})
    except Exception as error:  # whatever a peer's code does
        rows.append({"side": title, "skipped": peer_worker.reason(error)})
    return rows


if __name__ == "__main__":
    print(json.dumps({"rows": main(json.loads(sys.argv[1]))}))
