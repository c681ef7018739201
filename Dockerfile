# Two stages: the builder has Rust, a C compiler, make and perl (for librdkafka and OpenSSL); the image has the binary alone.
# The cache mounts need BuildKit, which Docker and Podman use by default.
FROM rust:1.95-bookworm AS builder
# As in --build-arg FEATURES=object-stores,distributed; none of them by default.
ARG FEATURES=""
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --profile dist --locked --features "$FEATURES" \
    && cp target/dist/tercile /usr/local/bin/tercile

FROM debian:bookworm-slim
# Kafka brokers that speak TLS are checked against the system's certificates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin tercile \
    && install -d -o tercile -g tercile /store
COPY --from=builder /usr/local/bin/tercile /usr/local/bin/tercile
# Flags win over these: in a container, loopback would reach nobody.
ENV TERCILE_BIND=0.0.0.0:5000 \
    TERCILE_STORE=/store
USER 10001:10001
VOLUME /store
EXPOSE 5000
ENTRYPOINT ["tercile"]
CMD ["--help"]
