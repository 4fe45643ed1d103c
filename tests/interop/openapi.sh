#!/bin/sh
# Holds a running gateway to its own OpenAPI document: the document is valid, and every route answers as it says, also
# to what nobody would send on purpose. Needs Python 3 and its package registry.
#
#   tests/interop/openapi.sh URL
set -eu
cd "$(dirname "$0")/../.."
url=${1:?the address of a gateway, such as http://127.0.0.1:7717}
folder=${CARGO_TARGET_DIR:-target}/interop
mkdir -p "$folder"
folder=$(realpath "$folder")
[ -d "$folder/venv" ] || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    openapi-spec-validator==0.9.0 schemathesis==4.32.5
document=$folder/openapi.json
"$folder/venv/bin/python" -c 'import sys, urllib.request as u; u.urlretrieve(sys.argv[1], sys.argv[2])' \
    "$url/v1/openapi.json" "$document"
"$folder/venv/bin/openapi-spec-validator" "$document"
# A schema cannot say which models there are, or that rows make sense; so what fits it may be refused all the same.
# A stream of events stays open for as long as its job is under way, and lines of JSON are none of what schemathesis can
# write, so these are left to the gateway's own tests.
cd "$folder" # It leaves a cache where it runs.
"$folder/venv/bin/schemathesis" run "$document" --url "$url" --checks all \
    --exclude-checks positive_data_acceptance --max-examples 40 \
    --exclude-path-regex '/(events|knowledge)$' --request-timeout 20
