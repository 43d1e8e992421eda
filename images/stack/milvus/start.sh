#!/bin/sh
# Milvus Lite as a server: the gRPC API of Milvus, one process, files.
set -eu
exec /opt/venv/bin/milvus-lite server --data-dir /var/lib/milvus --host 0.0.0.0 --port 19530
