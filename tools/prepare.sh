# Sourced by tools/demo, tools/check and tools/bench: installs what is missing, and runs steps with one line each.

missing=()
missing_peers=()

# need PACKAGES COMMAND...: PACKAGES are missing if COMMAND fails.
need() {
    local packages=$1
    shift
    if ! "$@" </dev/null >/dev/null 2>&1; then
        read -ra packages <<<"$packages"
        missing+=("${packages[@]}")
    fi
}

# want PACKAGE COMMAND...: the same for a package that one can do without. A|B is A, or B where there is no A.
want() {
    local package=$1
    shift
    if ! "$@" </dev/null >/dev/null 2>&1; then
        missing_peers+=("$package")
    fi
}

# has NAME: a command. has_header NAME, has_cxx_header NAME: a header of C, of C++.
has() { command -v "$1"; }
has_header() { printf '#include <%s>\n' "$1" | "${CC:-cc}" -fsyntax-only -x c -; }
has_cxx() { printf '#include <string>\n' | "${CXX:-c++}" -fsyntax-only -x c++ -; }
has_cxx_header() { printf '#include <%s>\n' "$1" | "${CXX:-c++}" -fsyntax-only -x c++ -; }
has_builder() { command -v ninja || command -v make; }

need_for_build() {
    need 'gcc libc6-dev' has_header stdlib.h
    need cmake has cmake
    need ninja-build has_builder
    need pkg-config has pkg-config
    need libck-dev has_header ck_pr.h
}

give_up() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 2
}

# Installs the packages in `missing`, and ends the program where that cannot be; then those in `missing_peers` that can
# be, and names the others. Does nothing if there are none.
install_missing() {
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo=(sudo)
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        if ! command -v apt-get >/dev/null; then
            give_up "missing here: ${missing[*]} (names as in Debian); install them and start again"
        fi
        if [ ${#sudo[@]} -gt 0 ] && ! command -v sudo >/dev/null; then
            give_up "missing here: ${missing[*]}; install them, or start again as root or with sudo installed"
        fi
        step "install ${missing[*]}" apt_install "${missing[@]}"
        [ "$step_status" -eq 0 ] || give_up "could not install: ${missing[*]}"
    fi
    if [ ${#missing_peers[@]} -gt 0 ]; then
        if ! command -v apt-get >/dev/null || { [ ${#sudo[@]} -gt 0 ] && ! command -v sudo >/dev/null; }; then
            printf 'goes without: %s\n' "${missing_peers[*]} (names as in Debian; cannot be installed from here)"
        else
            step "install ${missing_peers[*]}" apt_install_each "${missing_peers[@]}"
            grep '^goes without: ' "$step_log" || true
        fi
    fi

    local version
    version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
    if [ "$(printf '%s\n' 3.23 "$version" | sort -V | head -n 1)" != 3.23 ]; then
        give_up "cmake 3.23 or newer is needed, this is $version"
    fi
    if [ -z "${CMAKE_GENERATOR:-}" ]; then
        if command -v ninja >/dev/null; then
            export CMAKE_GENERATOR=Ninja
        else
            export CMAKE_GENERATOR='Unix Makefiles'
        fi
    fi
    CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
    export CMAKE_BUILD_PARALLEL_LEVEL
}

# As install_missing calls them, which sets `sudo`.
apt_get() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@"
}
apt_update() {
    apt_get update || echo 'apt-get update failed; trying with the lists that are here'
}
apt_install() {
    apt_update
    apt_get install -y --no-install-recommends "$@"
}
apt_install_each() {
    local package name
    apt_update
    for package; do
        for name in ${package//|/ }; do
            apt_get install -y --no-install-recommends "$name" && continue 2
        done
        printf 'goes without: %s\n' "$package"
    done
}

# step NAME COMMAND...: runs COMMAND (a function, too) quietly, prints one line with its time, and the whole log if
# it failed. Sets step_status and step_log. For `set -e` to work in COMMAND, call it plainly, not in a condition.
step() {
    local name=$1 start=$SECONDS
    shift
    mkdir -p build/log
    step_log=build/log/$(printf '%s' "$name" | tr -c '[:alnum:]\n' - | cut -c 1-40).log
    printf '%-43s ' "$name"
    set +e
    (
        set -e
        "$@"
    ) </dev/null >"$step_log" 2>&1
    step_status=$?
    set -e
    if [ $step_status -eq 0 ]; then
        printf 'ok   %4d s\n' $((SECONDS - start))
    else
        printf 'FAILED (exit %d) %d s\n' $step_status $((SECONDS - start))
        printf -- '---- %s\n' "$step_log"
        cat "$step_log"
        printf -- '---- end of %s\n' "$step_log"
    fi
}
