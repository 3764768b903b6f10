#!/bin/sh
# `serve` (the default, and what SageMaker says) starts the service, with further options for `bentoml serve` if given;
# anything else runs as it stands, such as `mlgov log close`.
set -eu
mkdir -p "$BENTOML_HOME" "$NUMBA_CACHE_DIR"
cp -Rp "$(dirname "$0")/numba/." "$NUMBA_CACHE_DIR"   # compiled when the image was built; numba must be able to write beside it
[ "${1:-serve}" = serve ] || exec "$@"
[ $# -eq 0 ] || shift
# the last of two equal options counts, so arguments override these
exec bentoml serve mlgov_nb.service:Mlgov --host 0.0.0.0 --port "${AIP_HTTP_PORT:-8080}" --timeout-graceful-shutdown 20 "$@"
