"""vLLM's own hash functions, asked: ``python -m tests.serve.plugin.hashed``.

On stdin a JSON list of ``{"env": {…}, "args": {…}}``, on stdout a JSON list of records, one for
each: environment and engine arguments as given, in a process of its own, forked after the imports.
"""

import json
import os
import sys
from typing import Any

import vllm.engine.arg_utils
from vllm.compilation import caching, decorators

from serve.plugin.factors import plain, record_of


class Model:
    def forward(self) -> None:
        """Stands for the model's own: only its name and line are hashed."""


def asked(case: dict[str, Any]) -> Any:
    os.environ.update(case["env"])
    arguments = vllm.engine.arg_utils.EngineArgs(**case["args"])
    config = arguments.create_engine_config()
    record = plain(record_of(config, Model.forward))
    # What vLLM makes of it by itself, nobody listening.
    factors = [*caching.aot_compile_hash_factors(config), decorators._model_hash_key(Model.forward)]
    return {**record, "graph": "backbone", "again": factors[0:2]}


def forked(case: dict[str, Any]) -> Any:
    reader, writer = os.pipe()
    if not (child := os.fork()):
        with os.fdopen(writer, "w") as file:
            json.dump(asked(case), file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return json.loads(said)


if __name__ == "__main__":
    answers = [forked(case) for case in json.load(sys.stdin)]
    print(json.dumps(answers))
