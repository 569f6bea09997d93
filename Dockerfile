# trunkline in a container: `docker build -t trunkline .`, then see examples/container.
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[database]'

FROM python:3.12-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels 'trunkline[database]' \
    && useradd --system --uid 8920 --no-create-home trunkline
USER 8920
EXPOSE 8920
# SIGTERM drains: give the container more time to stop than `drain_timeout`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["trunkline"]
CMD ["serve", "/etc/trunkline/trunkline.toml"]
