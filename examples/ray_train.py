"""Train with Ray: every worker runs `edgetune train` as one rank.

    pip install "ray[train]" && python examples/ray_train.py --model /shared/model --data /shared/rows.jsonl

Model and rows lie where every worker reads them under the same path; the run folder is written by rank 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

WORKERS = 2


def worker(settings: dict[str, Any]) -> None:
    """Run the command in the place that Ray gave this worker."""
    from ray import train

    place = train.get_context()
    environment = {
        **os.environ,  # MASTER_ADDR is Ray's, and so is its port, on which Ray itself meets
        "MASTER_PORT": str(int(os.environ["MASTER_PORT"]) + 1),
        "RANK": str(place.get_world_rank()),
        "WORLD_SIZE": str(place.get_world_size()),
        "LOCAL_RANK": str(place.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(place.get_local_world_size()),
    }
    command = ["edgetune", "train", *settings["arguments"]]
    subprocess.run(command, env=environment, check=True)


def main() -> None:
    """Start the workers."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        worker,
        train_loop_config={"arguments": sys.argv[1:]},
        scaling_config=ScalingConfig(num_workers=WORKERS, use_gpu=False),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
