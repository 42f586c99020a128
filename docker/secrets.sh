#!/bin/sh
# Makes the secrets of compose.yaml, each a file of mode 600 in secrets/, and .env, which says who
# owns them. What is there already is kept. Prints names, never values.
#   docker/secrets.sh [FOLDER]      FOLDER: where secrets/ and .env go; default: beside this script
set -eu
umask 077

cd "${1:-$(dirname "$0")}"
mkdir -p secrets
chmod 700 secrets

# random N: N random bytes as one line of hexadecimal digits.
random() {
    od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
    echo
}

# keep_or_write NAME: standard input becomes secrets/NAME, unless that is there.
keep_or_write() {
    if [ -s "secrets/$1" ]; then
        cat >/dev/null
        echo "kept secrets/$1"
    else
        cat >"secrets/$1.new"
        mv "secrets/$1.new" "secrets/$1"
        echo "made secrets/$1"
    fi
    chmod 600 "secrets/$1"
}

random 32 | keep_or_write ray_token
random 10 | keep_or_write s3_access_key
random 32 | keep_or_write s3_secret_key
random 24 | keep_or_write postgres_password
random 24 | keep_or_write mlflow_password
random 32 | keep_or_write mlflow_secret_key

# The S3 server's view of the two keys: written each time, so that it always agrees with them.
rm -f secrets/s3_identities
keep_or_write s3_identities <<JSON
{"identities": [{"name": "resurge", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "$(cat secrets/s3_access_key)",
                   "secretKey": "$(cat secrets/s3_secret_key)"}]}]}
JSON

# The images run as the files' owner. Never as root: then the files go to the first ordinary user.
owner=$(id -u)
if [ "$owner" -eq 0 ]; then
    owner=1000
    chown "$owner" secrets secrets/*
fi
touch .env
{
    grep -v '^RESURGE_UID=' .env || true
    echo "RESURGE_UID=$owner"
} >.env.new
mv .env.new .env
echo "wrote RESURGE_UID to .env"
