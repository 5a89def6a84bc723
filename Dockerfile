# The image of the service: no PostgreSQL, no Valkey, no tools, and one folder to write to.
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Brings hatchling. Of this stage only /opt/segmentql is kept.
COPY requirements.lock ./
RUN pip install --no-compile --require-hashes -r requirements.lock
# Before the code, so that a changed line of code does not install everything again.
COPY requirements-image.lock ./
RUN python -m venv --without-pip /opt/segmentql && \
    pip --python /opt/segmentql/bin/python install --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY schema schema
COPY resolvers resolvers
COPY db db
COPY jobs jobs
COPY server server
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheel . && \
    pip --python /opt/segmentql/bin/python install --no-deps /build/wheel/*.whl

FROM python:3.13-slim
# By number, so that an orchestrator can see that it is not root.
# The folder is where reports are kept, unless SEGMENTQL_FILES names a bucket; a volume that is mounted there takes over
# its owner.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir / --shell /usr/sbin/nologin segmentql && \
    mkdir --mode=700 /var/lib/segmentql && \
    chown 10001:10001 /var/lib/segmentql
COPY --from=build /opt/segmentql /opt/segmentql
# Every address of the container. That is refused without SEGMENTQL_AUTHENTICATION=required, unless
# SEGMENTQL_UNAUTHENTICATED=anywhere says that the network around the container keeps strangers out.
ENV PATH=/opt/segmentql/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SEGMENTQL_DRAIN_SECONDS=5 \
    SEGMENTQL_FILES=/var/lib/segmentql \
    SEGMENTQL_HOST=0.0.0.0 \
    SEGMENTQL_LOG_FORMAT=json \
    SEGMENTQL_PORT=8080
USER 10001:10001
WORKDIR /
EXPOSE 8080
# Whether this process is alive, not whether it is ready: whoever restarts an unhealthy container would otherwise
# restart all of them whenever PostgreSQL is away, which brings nothing back. A load balancer asks /readyz.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['SEGMENTQL_PORT'] + '/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["segmentql"]
CMD ["serve"]
