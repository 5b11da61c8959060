# shellcheck shell=bash
# What the scripts share, sourced: `set_up` makes .venv. Needs bash, util-linux and coreutils, and a
# Python with venv or an installed uv. Once set up, nothing here touches the network: a stamp in
# .venv says for which pyproject.toml, Python and folder it was made.

unset CDPATH VIRTUAL_ENV PYTHONHOME PYTHONPATH # meant for other programs
checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$checkout/.venv
stamp=$venv/.capport-set-up
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # not every user's has nft, squid and their like

say() { printf 'scripts/%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*" && exit 1; }
as_root() { if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi; }
may_install() { command -v apt-get >/dev/null && as_root true 2>/dev/null; }
writable() { mkdir -p -- "$1" 2>/dev/null && [[ -w $1 && -x $1 ]]; } # or can be made so
# Whether $1 is a uv that knows dependency groups, indexes and UV_NO_CACHE.
good_uv() { [[ $("$1" --version 2>/dev/null) =~ ^uv\ ([1-9]|0\.([5-9]|[1-9][0-9])\.) ]]; }
project_sum() { cat -- "$checkout/pyproject.toml" "$checkout/.python-version" | sha256sum; }
# What the stamp says of a .venv made for $1, a project_sum. The folder is its last line.
stamp_for() { printf '%s\n' "$1" "$("$venv/bin/python" -V)" "$checkout"; }
is_set_up() { [[ -r $stamp && $(<"$stamp") == "$(stamp_for "$(project_sum)" 2>/dev/null)" ]]; }
set_up() { ensure_home; is_set_up || locked "$checkout" make_venv; }

# Make folder $1 in .cache, which git does not see.
in_checkout() {
  writable "$checkout/.cache/$1" ||
    die "cannot write in $checkout/.cache (HOME is ${HOME:-not set}): run this in your own clone"
  echo '*' >"$checkout/.cache/.gitignore"
}

# mitmproxy keeps its CA under HOME, the portal its sessions.
ensure_home() {
  if [[ -d ${HOME:-} && -w $HOME && -x $HOME ]]; then return; fi
  in_checkout home
  export HOME=$checkout/.cache/home
  unset XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME
}

# Run the rest of the arguments while we hold a lock on folder $1; no lock file is left.
# A plain call, never in a condition: `set -e` must hold inside.
locked() (
  exec {lock}<"$1"
  flock --nonblock "$lock" || say "waiting for another set-up that holds $1"
  flock --timeout 1800 "$lock" || die "another set-up still holds $1 after half an hour"
  "${@:2}"
)

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qqy --no-install-recommends \
    -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" </dev/null >&2
}

# Install packages, with the lists there are if new ones cannot be had. apt waits for dpkg's
# lock by itself, but not for that of the lists.
apt_install() {
  for _ in {1..5}; do if apt_get update; then break; else sleep 3; fi; done
  apt_get install "$@"
}

# Put pyenv's Pythons in front of PATH, because uv looks nowhere else, and pyenv's own shims
# answer 127 for versions that the folder they are called in does not select.
pyenv_into_path() {
  local parts root bin
  IFS=: read -ra parts <<<"$PATH"
  for root in {/usr/local,/opt}/pyenv "$(unset HOME && printf '%s' ~)/.pyenv" "$HOME/.pyenv" \
    "${parts[@]%/shims}" "${PYENV_ROOT:-}"; do
    for bin in "$root"/versions/3.*/bin; do [[ ! -d $bin ]] || PATH=$bin:$PATH; done
  done
}

# uv reads none of pip's settings, and brings certificates of its own where pip often uses
# the machine's. An index or a CA in the environment is meant for both.
pip_settings_for_uv() {
  local bundle=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
  [[ -z ${PIP_CERT:-} && ! -s $bundle ]] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$bundle}"
  export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-${PIP_INDEX_URL:-}}}"
  export UV_INDEX="${UV_INDEX:-${UV_EXTRA_INDEX_URL:-${PIP_EXTRA_INDEX_URL:-}}}"
}

# Make a venv in folder $1 with the newest Python here that can.
new_venv() {
  local python
  while IFS= read -r python; do
    if "$python" -m venv --clear "$1" &>/dev/null; then return; fi
  done < <(type -ap python3.{15..9} python3)
  return 1
}

# A uv that works, in `uv`: an installed one, or one that pip installs into the checkout.
find_uv() {
  local own=$checkout/.cache/uv
  pyenv_into_path
  pip_settings_for_uv
  writable "${UV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/uv}" || export UV_NO_CACHE=1
  while IFS= read -r uv; do
    if good_uv "$uv"; then return; fi
  done < <(PATH=$PATH:$HOME/.local/bin:$HOME/.cargo/bin:$own/bin type -ap uv)
  say "no uv here: installing one into $own"
  in_checkout uv
  new_venv "$own" || { may_install && apt_install python3-venv && new_venv "$own"; } ||
    die "no uv, and no Python 3.9 or later with venv: install uv, or the package python3-venv"
  env -u PIP_TARGET -u PIP_PREFIX PIP_USER=0 "$own/bin/python" -m pip install --quiet \
    --disable-pip-version-check 'uv>=0.8,<1' >&2 ||
    die "pip could not install uv (its reason is above); an installed uv would do as well"
  uv=$own/bin/uv
}

# Print the Python for .venv: one that is here, or the version that uv shall download.
find_python() (
  export UV_PYTHON_DOWNLOADS=never
  "$uv" python find "$(<.python-version)" || "$uv" python find '>=3.12' || cat .python-version
) 2>/dev/null

make_venv() {
  local folder quiet=() sum
  ! is_set_up || return 0 # made while we waited for the lock
  for folder in "$checkout" "$venv"; do
    [[ -w $folder || ! -e $folder ]] ||
      die "$folder belongs to $(stat -c %U -- "$folder"): run this as them, or in your own clone"
  done
  # A venv knows the folder it was made in; moved or copied, it would run the other checkout.
  [[ ! -r $stamp || $(tail -n 1 -- "$stamp") == "$checkout" ]] || rm -rf -- "$venv"
  cd -- "$checkout"
  find_uv
  [[ -t 2 ]] || quiet=(--quiet)
  sum=$(project_sum) # of the file as it is before uv reads it
  say "setting up $venv (once; half a minute)"
  # --inexact: what somebody has added to .venv by hand stays.
  UV_PROJECT_ENVIRONMENT=$venv "$uv" sync "${quiet[@]}" --inexact --all-extras --group dev \
    --python "$(find_python)" >&2 || die "uv could not set up $venv (its reason is above)"
  stamp_for "$sum" >"$stamp"
}
