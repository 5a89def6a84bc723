#!/bin/sh
# Fetches GraphiQL's files, as npm has them, into server/static/graphiql/<package>@<version>/ and notes their hashes.
# To move to another version: change it here, in index.html and in LICENSES.md, then run this and the tests.
set -eu
cd "$(dirname "$0")/../server/static/graphiql"
packed=$(mktemp -d)
trap 'rm -rf "$packed"' EXIT

vendor() { # package@version, then the files of it that are served
	spec=$1
	shift
	npm pack --silent --pack-destination "$packed" "$spec" >"$packed/name"
	mkdir -p "$spec" "$packed/$spec"
	tar -xzf "$packed/$(cat "$packed/name")" -C "$packed/$spec"
	for file; do cp "$packed/$spec/package/$file" "$spec/"; done
}

rm -rf ./*@[0-9]* ./@*
vendor react@18.2.0 LICENSE umd/react.production.min.js
vendor react-dom@18.2.0 LICENSE umd/react-dom.production.min.js
vendor graphiql@3.8.3 LICENSE graphiql.min.js graphiql.min.css
vendor @graphiql/plugin-explorer@1.0.2 dist/index.umd.js dist/style.css
find . -type f -exec chmod 644 {} +

node -e '
const { createHash } = require("crypto");
const { readFileSync } = require("fs");
const hash = (path) => "sha384-" + createHash("sha384").update(readFileSync(path)).digest("base64");
console.log(JSON.stringify(Object.fromEntries(process.argv.slice(1).sort().map((path) => [path, hash(path)])), null, 2));
' $(find ./*@[0-9]* ./@* -type f | sed 's|^\./||') >integrity.json
