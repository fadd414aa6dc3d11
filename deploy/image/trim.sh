#!/bin/sh
# trim.sh torch|vllm: takes out of /opt/venv what serving never opens. Tried on the image for CPUs only.
#
# How it was found: docs/container.md. Sources of torch stay, tests and all: Inductor's keys hash them.
set -eu
site=$(echo /opt/venv/lib/python3*/site-packages)

case $1 in
torch)
  # 62 MB of headers, which compiling alone includes: the stage that bakes gets them back.
  mv "$site/torch/include" /opt/torch-include
  # 133 MB of torch's own test programs. Importing torch looks for the manager of shared memory.
  find "$site/torch/test" "$site/torch/bin" -type f ! -name torch_shm_manager -delete
  ;;
vllm)
  # 110 MB of Intel's compiler runtime beside the one library of it that is preloaded.
  find /opt/venv/lib -maxdepth 1 -type f ! -name libiomp5.so -delete
  # 36 MB of Mistral's own tokenizers; vLLM imports the package for other models' parsers too.
  rm -rf "$site/mistral_common/data"
  ;;
esac
find "$site" -name tests -type d -not -path '*/torch/*' -prune -exec rm -r {} +
