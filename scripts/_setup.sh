# shellcheck shell=bash
# What scripts/run, test and check share: `set_up` makes .venv and all that is in it.
#
# Sourced. Needs bash, util-linux and coreutils, and a Python with venv or an
# installed uv. Once set up, nothing here touches the network: a stamp in .venv
# says for which pyproject.toml, Python and folder it was made.

unset CDPATH VIRTUAL_ENV PYTHONHOME PYTHONPATH # none of them is ours
checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$checkout/.venv
stamp=$venv/.capport-set-up
self=scripts/${0##*/}

# nft, tcpdump, squid and their like lie where an ordinary user's PATH does not look.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s: %s\n' "$self" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

may_be_root() {
  command -v apt-get >/dev/null && { ((EUID == 0)) || sudo -n true 2>/dev/null; }
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  else
    sudo -n "$@"
  fi
}

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qqy -o DPkg::Lock::Timeout=600 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null >&2
}

# Make folder $1 if need be; whether we may write in it.
writable_folder() { mkdir -p -- "$1" 2>/dev/null && [[ -w $1 && -x $1 ]]; }

# A folder in the checkout that git does not see, for what has no home.
checkout_cache() {
  local folder=$checkout/.cache
  writable_folder "$folder" ||
    die "HOME (${HOME:-unset}) is no folder to write in, nor is $folder: set HOME to one that is"
  [[ -e $folder/.gitignore ]] || echo '*' >"$folder/.gitignore"
  printf '%s' "$folder"
}

# mitmproxy keeps its CA under HOME, uv its cache, the portal its sessions.
ensure_home() {
  if [[ ! -d ${HOME:-} || ! -w $HOME || ! -x $HOME ]]; then
    HOME=$(checkout_cache)/home
    mkdir -p -- "$HOME"
    unset XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME
    export HOME
  fi
}

project_sum() { cat -- "$checkout/pyproject.toml" "$checkout/.python-version" | sha256sum; }

# What the stamp says of a .venv made for $1, a project_sum. The folder is its last line.
stamp_for() {
  printf '%s\n' "$1"
  "$venv/bin/python" -V
  printf '%s\n' "$checkout"
}

is_set_up() {
  [[ -x $venv/bin/python && -r $stamp ]] &&
    [[ $(<"$stamp") == "$(stamp_for "$(project_sum)" 2>/dev/null)" ]]
}

# Hold a lock on folder $1 (no lock file is left) while the rest of the arguments run.
# A plain call, never in a condition: `set -e` must hold inside.
locked() (
  exec {lock}<"$1"
  if ! flock --nonblock "$lock"; then
    say "waiting for another set-up that holds $1"
    flock --timeout 1800 "$lock" || die "another set-up still holds $1 after half an hour"
  fi
  shift
  "$@"
)

# Whether $1 is a Python that can make a venv with a pip that can install uv. pyenv's
# shims answer 127 for versions that the folder they are called in does not select.
makes_venv() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' &>/dev/null
}

# pyenv's folders: what it says, where its shims in PATH are, the usual places.
pyenv_roots() {
  local part account
  account=$(getent passwd "$(id -u)" | cut -d: -f6) || true
  {
    printf '%s\n' "${PYENV_ROOT:-}" "$HOME/.pyenv" "${account:+$account/.pyenv}"
    while IFS= read -r -d: part; do
      [[ $part != */shims ]] || printf '%s\n' "${part%/shims}"
    done <<<"$PATH:"
    printf '%s\n' /opt/pyenv /usr/local/pyenv
  } | awk 'NF && !seen[$0]++'
}

# pyenv's Pythons, the newest first.
pyenv_pythons() (
  shopt -s nullglob
  while IFS= read -r root; do
    for python in "$root"/versions/3.*/bin/python3; do
      printf '%s\n' "$python"
    done
  done < <(pyenv_roots) | sort -rV
)

python_for_venv() {
  local python
  while IFS= read -r python; do
    if makes_venv "$python"; then
      printf '%s' "$python"
      return
    fi
  done < <(printf '%s\n' python3 /usr/bin/python3 python3.{15,14,13,12,11,10,9} && pyenv_pythons)
  return 1
}

# Whether $1 is a uv that knows dependency groups, indexes and UV_PYTHON_DOWNLOADS.
good_uv() {
  local version
  version=$("$1" --version 2>/dev/null) && [[ $version =~ ^uv\ ([0-9]+)\.([0-9]+) ]] &&
    ((BASH_REMATCH[1] > 0 || BASH_REMATCH[2] >= 5))
}

# A uv of our own in folder $1, from the package index that pip is set to use.
install_uv() {
  local folder=$1 python
  ! good_uv "$folder/bin/uv" || return 0 # made while we waited for the lock
  if ! python=$(python_for_venv) && may_be_root; then
    say "no Python here can make a venv: installing python3-venv"
    apt_get update && apt_get install --no-install-recommends python3-venv || true
    python=$(python_for_venv) || true
  fi
  [[ -n $python ]] ||
    die "no uv, and no Python 3.9 or later with venv: install uv, or the package python3-venv"
  say "no uv here: installing one into $folder"
  "$python" -m venv --clear "$folder"
  env -u PIP_TARGET -u PIP_PREFIX PIP_USER=0 "$folder/bin/python" -m pip install --quiet \
    --disable-pip-version-check 'uv>=0.8,<1' >&2 ||
    die "pip could not install uv (its reason is above); an installed uv would do as well"
}

# A uv that works, in `uv`: installed, or our own under the user's cache directory.
find_uv() {
  local candidate cache=${XDG_CACHE_HOME:-$HOME/.cache}/capport
  for candidate in uv "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv" "$cache/uv/bin/uv"; do
    if good_uv "$candidate"; then
      uv=$candidate
      return
    fi
  done
  if ! writable_folder "$cache"; then
    cache=$(checkout_cache)/capport
    mkdir -p -- "$cache"
  fi
  locked "$cache" install_uv "$cache/uv"
  uv=$cache/uv/bin/uv
}

# uv reads none of pip's settings, and brings certificates of its own where pip is often
# told of the machine's. Who has set an index or a CA in the environment means both.
pip_settings_for_uv() {
  if [[ -s /etc/ssl/certs/ca-certificates.crt ]]; then
    export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS-true} UV_NATIVE_TLS=${UV_NATIVE_TLS-true} # new name, old
  fi
  if [[ -n ${PIP_INDEX_URL:-} && -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then
    export UV_DEFAULT_INDEX=$PIP_INDEX_URL
  fi
  if [[ -n ${PIP_EXTRA_INDEX_URL:-} && -z ${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-} ]]; then
    export UV_INDEX=$PIP_EXTRA_INDEX_URL
  fi
  if [[ -n ${PIP_CERT:-} && -z ${SSL_CERT_FILE:-} ]]; then
    export SSL_CERT_FILE=$PIP_CERT
  fi
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' &>/dev/null
}

# The Python for .venv, in `python`: what .venv has, what uv finds (PATH, its own), what
# pyenv keeps; only when there is none, one that uv downloads.
find_python() {
  local wanted candidate
  wanted=$(<"$checkout/.python-version")
  if is_new_enough "$venv/bin/python"; then
    python=$venv/bin/python
    return
  fi
  for candidate in "$wanted" '>=3.12'; do
    if python=$(UV_PYTHON_DOWNLOADS=never "$uv" python find --system "$candidate" 2>/dev/null); then
      return
    fi
  done
  while IFS= read -r candidate; do
    if is_new_enough "$candidate"; then
      python=$candidate
      return
    fi
  done < <(pyenv_pythons)
  say "no Python 3.12 or later in PATH, with uv or with pyenv: having uv download $wanted"
  export UV_PYTHON_DOWNLOADS=automatic
  python=$wanted
}

make_venv() {
  ! is_set_up || return 0 # made while we waited for the lock
  if [[ -e $venv && ! -w $venv ]]; then
    die "$venv belongs to $(stat -c %U -- "$venv") and is out of date: run this as them, or remove it"
  elif [[ ! -w $checkout ]]; then
    die "cannot write in $checkout: clone it to where you may, or have its owner run this first"
  fi
  # A venv knows the folder it was made in; moved or copied, it would run the other checkout.
  if [[ -r $stamp && $(tail -n 1 -- "$stamp") != "$checkout" ]]; then
    say "$venv was made in $(tail -n 1 -- "$stamp"): making it anew"
    rm -rf -- "$venv"
  fi
  cd -- "$checkout"
  pip_settings_for_uv
  if ! writable_folder "${UV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/uv}"; then
    UV_CACHE_DIR=$(checkout_cache)/uv
    export UV_CACHE_DIR
  fi
  find_uv
  find_python
  local quiet=() sum
  [[ -t 2 ]] || quiet=(--quiet)
  sum=$(project_sum) # of the file as it is before uv reads it
  say "setting up $venv (once; half a minute)"
  # --inexact: what somebody has added to .venv by hand stays.
  UV_PROJECT_ENVIRONMENT=$venv "$uv" sync "${quiet[@]}" --inexact --group dev \
    --python "$python" >&2 || die "uv could not set up $venv (its reason is above)"
  stamp_for "$sum" >"$stamp"
}

set_up() {
  ensure_home
  if is_set_up; then return; fi
  locked "$checkout" make_venv
}
