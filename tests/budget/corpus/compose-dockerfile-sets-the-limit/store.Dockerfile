ARG VERSION=18
FROM postgres:${VERSION}
CMD ["postgres", "-c", "max_connections=300"]
