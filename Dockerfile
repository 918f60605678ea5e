# fitb in a container:
#   docker build --tag fitb .                          to train, and for all else
#   docker build --tag fitb-serve --target serve .     to serve: no compiler in it
#   docker run --gpus all --ipc host -v "$PWD:/data" -w /data fitb train --config tinybert4 ...
#   docker run --gpus all -p 8000:8000 -v "$PWD/models/tb4:/model:ro" fitb-serve
#
# PyTorch's wheels bring CUDA's libraries; the base brings what the driver of the host needs. A newer
# base: `docker buildx imagetools inspect nvidia/cuda:TAG` prints the digest of its tag. Without a GPU:
#   --build-arg BASE=debian:bookworm-slim --build-arg TORCH=cpu --build-arg PIP_EXTRA_INDEX_URL=...
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:2ab6381d970b211fb93853796dc6707eb8a72575a375c422b17cf4d8b2641701

FROM ${BASE} AS build
# What pip reads; of this stage alone.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS
ARG TORCH=default EXTRAS=clean,onnx,remote,serve
# hadolint ignore=DL3008 # the base is pinned; its archive keeps one version of each package
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python3 -m venv /tools \
    && /tools/bin/pip install --no-cache-dir --constraint constraints.txt packaging \
    && /tools/bin/python container/wheelhouse.py --torch "$TORCH" --extras "$EXTRAS" --out /wheels
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --no-index --find-links /wheels "fitb[$EXTRAS]" \
    && /venv/bin/pip check

FROM ${BASE} AS serve
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 fitb
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/fitb
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=10s --timeout=5s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["fitb"]
CMD ["serve", "/model", "--host", "0.0.0.0"]

# On GPUs training compiles while it runs: torch.compile builds the launchers of its kernels with a C
# compiler and Python's headers. DeepSpeed is told of no operator to build.
FROM serve AS train
USER 0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001
HEALTHCHECK NONE
CMD ["--help"]
