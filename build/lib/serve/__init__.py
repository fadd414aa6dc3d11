"""Run time of Preheat: a variant becomes a command, a supervised engine and a gateway.

Imports no torch and no vLLM: the engine is a child process. ``serve.plugin`` is the
exception, because it runs inside vLLM's own processes.
"""

__version__ = "0.1.0"
