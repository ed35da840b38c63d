# The server as an image: `cpu` is the default target, `gpu` the other. deploy/image/ has the lock files and their maker.
#   docker build -t bitserve:0.1.0 .
#   docker build -t bitserve-gpu:0.1.0 --target gpu .
# The bases are arguments, so that a mirror's or a digest can be named.
# checkov:skip=CKV_DOCKER_7:the tags are in the values of the arguments, which it does not look at; hadolint does
ARG BASE=python:3.11-slim-bookworm
ARG GPU_BUILD_BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG GPU_BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04

# ---- what builds: none of it gets into an image
FROM ${BASE} AS tools
SHELL ["/bin/sh", "-euc"]
# no versions: a pinned one is gone from Debian with its next fix
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ make tini && rm -rf /var/lib/apt/lists/*
COPY deploy/image/requirements-build.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/build \
    && /opt/build/bin/python -m pip install --quiet --require-hashes -r /build/requirements-build.txt

# ---- all that pyproject.toml asks for, and its extras `store` and `kubernetes`; without pip
FROM tools AS dependencies
COPY deploy/image/requirements-cpu.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/bitserve \
    && /opt/build/bin/python -m pip --python /opt/bitserve/bin/python install --quiet --no-compile --only-binary :all: \
        --require-hashes -r /build/requirements-cpu.txt

# a stage of its own: kernels are compiled against headers that are left out here
FROM dependencies AS slim
COPY deploy/image/slim.py /build/
RUN /opt/bitserve/bin/python /build/slim.py

# ---- the program: a wheel with its native kernels, installed to a folder of its own, and the SBOM of the whole
FROM dependencies AS program
WORKDIR /build/source
COPY pyproject.toml README.md LICENSE ./
COPY engines engines
COPY app app
# without its kernels the wheel would be made all the same, and binary layers be slow: so the library is asked for
RUN PATH="/opt/build/bin:$PATH" pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /opt/wheels . \
        --config-settings "cmake.define.OPENVINO_WHEEL=$(echo /opt/bitserve/lib/python3*/site-packages/openvino)" \
    && pip="/opt/build/bin/python -m pip --python /opt/bitserve/bin/python" \
    && $pip install --quiet --no-deps --no-index --no-compile --prefix /opt/program /opt/wheels/*.whl \
    && test -f /opt/program/lib/python3*/site-packages/engines/plugins/cpu/libbitserve_bnn.plugin \
    && /opt/bitserve/bin/python -m compileall -q --invalidation-mode unchecked-hash -s /opt/program -p /opt/bitserve \
        /opt/program/lib \
    && $pip install --quiet --no-deps --no-index --no-compile /opt/wheels/*.whl \
    && $pip check \
    && mkdir -p /usr/share/sbom \
    && /opt/build/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
        --output-format JSON --output-file /usr/share/sbom/bitserve.cdx.json /opt/bitserve/bin/python

# ---- gpu. Checked of these two stages: the linters, the lock file, and that all of it but TensorRT's libraries installs.
# They were never built on NVIDIA's images, nor run on a GPU.
FROM ${GPU_BUILD_BASE} AS gpu-environment
SHELL ["/bin/sh", "-euc"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
COPY deploy/image/requirements-build.txt deploy/image/requirements-gpu.txt deploy/image/slim.py /build/
COPY --from=program /opt/wheels /opt/wheels
WORKDIR /build
# these come as source alone: they are built apart, with tools of the lock instead of whatever is newest. TensorRT's are
# stubs that fetch their libraries from NVIDIA's own index, so for these its word is taken, not the lock's hash
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/build \
    && /opt/build/bin/python -m pip install --quiet --require-hashes -r requirements-build.txt \
    && awk '/^[a-z]/ { mine = /^(pycuda|tensorrt-cu13|tensorrt-cu13-libs)==/ } { print > (mine ? "source.txt" : "wheels.txt") }' requirements-gpu.txt \
    && python3 -m venv --without-pip /opt/bitserve \
    && pip="/opt/build/bin/python -m pip --python /opt/bitserve/bin/python" \
    && $pip install --quiet --no-compile --only-binary :all: --require-hashes -r wheels.txt \
    && /opt/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir --require-hashes \
        -r source.txt --wheel-dir /opt/wheels \
    && $pip install --quiet --no-deps --no-index --no-compile /opt/wheels/*.whl \
    && $pip check \
    && mkdir -p /usr/share/sbom \
    && /opt/build/bin/cyclonedx-py environment --mc-type application --output-reproducible --output-format JSON \
        --output-file /usr/share/sbom/bitserve.cdx.json /opt/bitserve/bin/python \
    && /opt/bitserve/bin/python slim.py

FROM ${GPU_BASE} AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="bitserve-gpu" \
      org.opencontainers.image.description="Compiles trained models for the machine it runs on and serves them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 bitserve \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin bitserve \
    && install -d -o 10001 -g 10001 /models /cache
COPY --from=gpu-environment /opt/bitserve /opt/bitserve
COPY --from=gpu-environment /usr/share/sbom /usr/share/sbom
COPY deploy/image/health.py /opt/bitserve/share/health.py
COPY --from=tools /usr/bin/tini-static /usr/bin/tini
# what NVIDIA's container runtime mounts into the container
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PATH=/opt/bitserve/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp \
    BITSERVE_HOST=0.0.0.0 BITSERVE_REPOSITORY=/models BITSERVE_CACHE=/cache/plans BITSERVE_MIRROR=/cache/mirror
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-I", "/opt/bitserve/share/health.py"]
# before the server, to take in processes of a build that was killed: nobody else would end them
ENTRYPOINT ["tini", "-s", "--", "bitserve"]
CMD ["serve"]

# ---- cpu: the default, since it is last
FROM ${BASE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="bitserve" \
      org.opencontainers.image.description="Compiles trained models for the machine it runs on and serves them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
RUN groupadd --gid 10001 bitserve \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin bitserve \
    && install -d -o 10001 -g 10001 /models /cache
# in the order in which they change, so that a new program is a small layer
COPY --from=slim /opt/bitserve /opt/bitserve
COPY --from=program /opt/program /opt/bitserve
COPY --from=program /usr/share/sbom /usr/share/sbom
COPY deploy/image/health.py /opt/bitserve/share/health.py
COPY --from=tools /usr/bin/tini-static /usr/bin/tini
ENV PATH=/opt/bitserve/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp \
    BITSERVE_HOST=0.0.0.0 BITSERVE_REPOSITORY=/models BITSERVE_CACHE=/cache/plans BITSERVE_MIRROR=/cache/mirror
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-I", "/opt/bitserve/share/health.py"]
# before the server, to take in processes of a build that was killed: nobody else would end them
ENTRYPOINT ["tini", "-s", "--", "bitserve"]
CMD ["serve"]
