#!/bin/sh
# Starts the documentation site.
#   serve    rebuilds when a page changes and reloads the browser (default)
#   static   builds the site once into /tmp and serves the files
#   site     serves the site that was built with the image: nothing of SITE_URL, MKDOCS_CONFIG or a mounted vault is in it
#   COMMAND  anything else is run as it is
set -eu

config=${MKDOCS_CONFIG:-/app/mkdocs.yml}
port=${API_PORT:-8000}

case ${1:-serve} in
  serve)
    [ "$#" -eq 0 ] || shift
    # Newer releases of click leave live reloading off unless it is asked for.
    exec mkdocs serve --config-file "$config" --dev-addr "0.0.0.0:$port" --livereload "$@"
    ;;
  static)
    shift
    site=/tmp/site
    mkdocs build --quiet --config-file "$config" --site-dir "$site" "$@"
    exec python3 /app/serve.py "$site" "$port"
    ;;
  site)
    exec python3 /app/serve.py /app/site "$port"
    ;;
  *)
    exec "$@"
    ;;
esac
