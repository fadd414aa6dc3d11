# The gateway over the fake engine: a pod of it is ready in a second.
ARG APPLIANCE
FROM ${APPLIANCE}
COPY tests /opt/preheat/tests
ARG SWITCHES=
# There is nothing that could have been baked for it, and nothing that it compiles.
USER root
RUN ln -s /bin/false /usr/bin/g++
USER 10001:10001
ENV SWITCHES=${SWITCHES} PREHEAT_CACHE_POLICY=off
ENTRYPOINT ["tini", "--", "sh", "-c", "exec /opt/venv/bin/python /opt/preheat/tests/serve/served.py $SWITCHES"]
CMD []
