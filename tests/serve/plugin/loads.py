"""Loads one model after the other in this process, without an engine, and tells how it went.

    python -m tests.serve.plugin.loads '[{"model": "…", "drafts": 2}, …]'

Prints one JSON line: for each job the digests of every parameter before post-processing, by role,
and what the loader reported; or why it was refused.
"""

import json
import sys

from serve.plugin import alone


def load(job: alone.Job) -> dict:
    from vllm.model_executor.model_loader.weight_checksum import compute_tensor_digests

    from serve.plugin.weights import WeightsError

    told: dict = {"digests": {}, "reports": [], "refused": ""}
    try:
        with alone.configured(job) as config:
            for role in alone.roles(config):
                model, loader = alone.fill(config, role)
                told["digests"][type(model).__name__] = compute_tensor_digests(model)
                told["reports"].append(getattr(loader, "report", None))
    except (WeightsError, ValueError) as error:
        told["refused"] = f"{type(error).__name__}: {error}"
    return told


def main() -> None:
    jobs = [alone.Job(**job) for job in json.loads(sys.argv[1])]
    with alone.worker(jobs[0]):
        print(json.dumps([load(job) for job in jobs]))


if __name__ == "__main__":
    main()
