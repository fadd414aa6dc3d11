# One appliance, two targets: `TARGET=cpu` or `TARGET=cuda`. Built by `make build`, which bakes
# between two of these stages what no build can (it needs the device), and reads as plain
# Dockerfile for the classic builder and for BuildKit alike.
#
#   system ─► torch ─► vllm         builders: uv, wheels, bytecode
#      └────► engine ─► model ─┬─► compiler ─► baker    what bakes: + a compiler, + code
#                              └─► appliance            what ships: + baked caches, + code
#
# The base is named by an argument, so that production can pin it by digest.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS system
# What vLLM's library for CPUs links against; an init that reaps and passes signals on.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends libgomp1 libnuma1 tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log


FROM system AS torch
# Where wheels are looked for, beside what the base is configured with. Stages that ship take
# files from here and no layer, so that neither these nor uv can be found in an image.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_FIND_LINKS=
ARG TARGET=cpu
ENV UV_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    UV_INDEX_STRATEGY=unsafe-best-match \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_CONSTRAINT=/build/constraints.txt \
    UV_EXCLUDE=/build/excluded.txt \
    VIRTUAL_ENV=/opt/venv
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --quiet --no-cache-dir uv==0.13.8 \
 && python3 -m venv --without-pip /opt/venv
COPY constraints.txt /build/
COPY deploy/image/without-${TARGET}.txt /build/excluded.txt
COPY deploy/image/trim.sh /build/
# "===": a torch for CPUs, should an index have one, is a later version by its name.
RUN UV_DEFAULT_INDEX="${PIP_INDEX_URL}" UV_FIND_LINKS="${PIP_FIND_LINKS}" /opt/uv/bin/uv pip install --compile-bytecode \
      $([ "${TARGET}" = cuda ] && echo torch===2.13.0 || echo torch==2.13.0+cpu) \
 && if [ "${TARGET}" = cpu ]; then sh /build/trim.sh torch; else mkdir /opt/torch-include; fi \
 && cd /opt/venv && find . -type f > /build/torch.files && sort -o /build/torch.files /build/torch.files


FROM torch AS vllm
# The classic builder forgets a parent's arguments.
ARG PIP_INDEX_URL=
ARG PIP_FIND_LINKS=
ARG TARGET=cpu
COPY pyproject.toml /build/
# Only what came after torch is left in /opt/rest: a layer of its own, as it changes oftener.
RUN UV_DEFAULT_INDEX="${PIP_INDEX_URL}" UV_FIND_LINKS="${PIP_FIND_LINKS}" /opt/uv/bin/uv pip install --compile-bytecode \
      --requirements /build/pyproject.toml \
      --extra $([ "${TARGET}" = cuda ] && echo gpu || echo cpu) --extra sign \
 && if [ "${TARGET}" = cpu ]; then sh /build/trim.sh vllm; fi \
 && cd /opt/venv && find . -type f > /build/all.files && sort -o /build/all.files /build/all.files \
 && comm -13 /build/torch.files /build/all.files > /build/rest.files && mkdir /opt/rest \
 && xargs --delimiter='\n' --arg-file=/build/rest.files cp --archive --parents --target-directory=/opt/rest


FROM vllm AS package
ARG PIP_INDEX_URL=
ARG PIP_FIND_LINKS=
COPY pyproject.toml README.md LICENSE preheat.py /build/
COPY blob /build/blob
COPY serve /build/serve
COPY bake /build/bake
# By hash, not by time: the same code is the same layer, whenever it was built.
RUN PYC_INVALIDATION_MODE=CHECKED_HASH UV_DEFAULT_INDEX="${PIP_INDEX_URL}" \
    UV_FIND_LINKS="${PIP_FIND_LINKS}" /opt/uv/bin/uv pip install --no-deps --target /opt/preheat --compile-bytecode /build \
 && mv /opt/preheat/bake /opt/bake && rm -f /opt/preheat/.lock


FROM system AS engine
COPY --from=torch /opt/venv /opt/venv
COPY --from=vllm /opt/rest /opt/venv
# `preheat` lies outside of the environment, in the last layer, and is found by this.
RUN rm -f /opt/venv/.lock \
 && echo /opt/preheat > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/preheat.pth" \
 && useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /tmp preheat
# Everything below is the same for every image made of this, so it stands before what changes.
ENV PATH=/opt/preheat/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PREHEAT_HOST=0.0.0.0 \
    PREHEAT_BAKED_ROOT=/opt/preheat/baked \
    PREHEAT_CACHE_ROOT=/tmp/preheat-cache \
    PREHEAT_CACHE_POLICY=require
WORKDIR /opt/preheat
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 \
  CMD ["/opt/venv/bin/python", "-I", "-S", "/opt/preheat/serve/ask.py", "/ready"]
ENTRYPOINT ["tini", "--", "preheat"]
CMD ["serve", "run"]


FROM engine AS model
ARG MODEL=tiny
# A file of experiments/targets: what the caches are baked for.
ARG SERVES=cpu
ENV MODEL=${MODEL} TARGET=${SERVES}
# Of all weights, those that its variants serve: nothing else is sent here. What levers made of
# them is a layer of its own: making it anew copies no checkpoint. None need be there: a pattern
# that nothing fits is no error.
ARG WEIGHTS=tiny
COPY weights/${WEIGHTS} /opt/preheat/weights/${WEIGHTS}
COPY weights/derive[d] /opt/preheat/weights/derived/


FROM model AS compiler
# Inductor compiles with g++ and includes Python.h, which some bases have and some do not.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends g++ \
      $(python3 -c 'import sysconfig, os; print("" if os.path.exists(sysconfig.get_path("include") + "/Python.h") else "python3-dev")') \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o 10001 -g 10001 /opt/preheat/baked \
 && include="$(echo /opt/venv/lib/python3*/site-packages/torch)/include" \
 && { [ -e "${include}" ] || ln -s /opt/torch-include "${include}"; }
# What was taken out of torch because compiling alone needs it; nothing where nothing was.
COPY --from=torch /opt/torch-include /opt/torch-include


# Code last here too: a line of the gateway must not install a compiler again.
FROM compiler AS baker
COPY --from=package /opt/preheat /opt/preheat
COPY experiments /opt/preheat/experiments
COPY --from=package /opt/bake /opt/preheat/bake
USER 10001:10001
CMD ["bake", "cache", "--help"]


FROM model AS appliance
ARG BAKED=.cache/image/baked
COPY ${BAKED} /opt/preheat/baked
COPY --from=package /opt/preheat /opt/preheat
COPY experiments /opt/preheat/experiments
USER 10001:10001
