#!/bin/sh
# Runs all tests. Installs what they need (redis-server; postgresql for the outbox; chromium and its driver for
# the example with a page; prometheus for the dashboard; openssl for certificates) where that is one known command; elsewhere says what to install.
#
#   sh tests/run.sh [what cargo test takes]
#
# Tests start their own servers and browsers on free ports. What runs already is left alone.
set -eu
cd "$(dirname "$0")/.."

server=${TIDINGS_REDIS_SERVER:-redis-server}
oldest_major=7

fail() {
    echo "tests/run.sh: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "needs root to install $missing, and there is no sudo: install it by hand"
    fi
}

# Runs in a subshell, whose end takes the policy away again.
#
# The package of redis-server would start one on the standard port. Debian's way to forbid that is a
# program which answers 101 when asked whether a service may start; one that is there already has its
# reasons.
install_on_debian() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root apt-get update
    # shellcheck disable=SC2086 # several packages
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
}

missing=""
if ! command -v "$server" >/dev/null; then
    [ -z "${TIDINGS_REDIS_SERVER:-}" ] ||
        fail "TIDINGS_REDIS_SERVER names '$server', which cannot be run"
    missing="redis-server"
fi
# As `src/testing/postgres.rs` looks for it.
has_postgres() {
    if [ -n "${TIDINGS_POSTGRES_BIN:-}" ]; then
        [ -x "$TIDINGS_POSTGRES_BIN/initdb" ] ||
            fail "TIDINGS_POSTGRES_BIN names '$TIDINGS_POSTGRES_BIN', where there is no initdb"
    else
        command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
    fi
}
has_postgres || missing="$missing postgresql"
command -v chromedriver >/dev/null || missing="$missing chromium chromium-driver"
command -v prometheus >/dev/null || missing="$missing prometheus"
command -v openssl >/dev/null || missing="$missing openssl"

if [ -n "$missing" ]; then
    if [ -e /etc/debian_version ] && command -v apt-get >/dev/null; then
        echo "tests/run.sh: installing $missing"
        (install_on_debian)
    else
        fail "needs redis-server $oldest_major or later, postgresql 14 or later, chromedriver (with its browser), prometheus and openssl in PATH; missing: $missing.
Install it and run this again:
    macOS          brew install redis postgresql chromedriver prometheus openssl; brew install --cask chromium
    Fedora, RHEL   dnf install redis postgresql-server chromium chromedriver golang-github-prometheus openssl
    Arch           pacman -S valkey postgresql chromium prometheus openssl, with TIDINGS_REDIS_SERVER=valkey-server
    Alpine         apk add redis postgresql chromium chromium-chromedriver prometheus openssl"
    fi
fi

version=$("$server" --version)
major=$(printf '%s\n' "$version" | sed -n 's/.*v=\([0-9]*\)\..*/\1/p')
[ "${major:-0}" -ge "$oldest_major" ] || fail "needs redis-server $oldest_major or later, found: $version"

# Most tests wait for servers, not for the processor.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-4}"
exec cargo test --all-features "$@"
