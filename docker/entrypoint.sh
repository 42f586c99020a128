#!/bin/sh
# Secrets come as files; most programs want environment variables. For each NAME below, NAME_FILE
# names the file whose first line becomes NAME. Then the command runs. Nothing is printed.
set -eu

for name in \
    AWS_ACCESS_KEY_ID \
    AWS_SECRET_ACCESS_KEY \
    MLFLOW_AUTH_ADMIN_PASSWORD \
    MLFLOW_FLASK_SERVER_SECRET_KEY \
    MLFLOW_TRACKING_PASSWORD \
    PGPASSWORD; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    if [ ! -r "$file" ]; then
        echo "entrypoint: ${name}_FILE names ${file}, which user $(id -u) cannot read." \
            "Run docker/secrets.sh, then build the images again, as the user who starts them." >&2
        exit 1
    fi
    value=
    IFS= read -r value <"$file" || [ -n "$value" ]
    export "$name=$value"
    unset "${name}_FILE" value
done
unset name file

exec "$@"
