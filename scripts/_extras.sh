# shellcheck shell=bash
# What tests use besides .venv, sourced after _setup.sh: `install_extras` brings the system
# packages of packages.txt, where it may, and venvs in .venv for what cannot be in it.

# schemathesis holds the API against its OpenAPI document; it and mitmproxy want different versions
# of typing-extensions. `bare` is the portal without the extras of pyproject.toml.
declare -A venvs=([schemathesis]='schemathesis>=4.20,<5' [bare]="--editable=$checkout")
policy=/usr/sbin/policy-rc.d
mark='# capport: no service starts while its packages are installed'

missing_packages() {
  local package command _
  while read -r package command _; do
    [[ -z $package || $package == \#* ]] || command -v "$command" >/dev/null || echo "$package"
  done <"$checkout/scripts/packages.txt"
}

# Venv $1 is whole once it has a file that is called what it was made for.
made_for() { printf '%s/%s/made-for-%s' "$venv" "$1" "$(sum_for "$1" | cut -c -16)"; }
sum_for() { { echo "${venvs[$1]}" && project_sum; } | sha256sum; }

missing_venvs() {
  local name
  for name in "${!venvs[@]}"; do [[ -e $(made_for "$name") ]] || echo "$name"; done
}

missing_extras() { missing_packages && missing_venvs; }

services() {
  find /etc/init.d /lib/systemd/system -type f ! -name '*@*' -printf '%f\n' 2>/dev/null | sort || true
}

# squid, nginx and their like would start, and take ports, once installed and at each boot.
install_packages() {
  local missing before service
  mapfile -t missing < <(missing_packages) # others may have held the lock
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  if [[ ! -e $policy ]] || grep -qsF "$mark" "$policy"; then
    trap 'as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" | as_root install -m 755 /dev/stdin "$policy"
  fi
  before=$(services)
  apt_install "${missing[@]}" || for package in "${missing[@]}"; do
    apt_get install "$package" || say "apt-get could not install $package"
  done
  ! command -v systemctl >/dev/null || comm -13 <(echo "$before") <(services) |
    while read -r service; do
      as_root systemctl disable --quiet "$service" </dev/null || say "$service may start at the next boot"
    done
}

install_venv() {
  say "installing ${venvs[$1]} into $venv/$1"
  cd -- "$checkout" # for the date in pyproject.toml that packages are taken of
  find_uv
  "$uv" venv --quiet --clear --python "$venv/bin/python" "$venv/$1" >&2 &&
    "$uv" pip install --quiet --python "$venv/$1/bin/python" "${venvs[$1]}" >&2 &&
    touch -- "$(made_for "$1")"
}

bring_extras() {
  local name
  ! may_install || locked /var/lib/dpkg install_packages
  for name in $(missing_venvs); do
    (install_venv "$name") || say "uv could not install ${venvs[$name]} (its reason is above)"
  done
  printf '%s\n' "$EUID" "$(missing_extras)" >"$1"
}

# What could not be brought is tried again a day later, by another user, or when it is
# something else.
install_extras() {
  local missing note=$venv/.capport-extras
  missing=$(missing_extras)
  if [[ -n $missing && -w $venv ]] &&
    ! [[ -n $(find "$note" -mmin -1440 2>/dev/null) && $(<"$note") == "$EUID"$'\n'"$missing" ]]; then
    locked "$checkout" bring_extras "$note"
    missing=$(missing_extras)
  fi
  [[ -z $missing ]] || say "without ${missing//$'\n'/, }, some tests cannot run (rm $note: try again)"
}

install_mitmproxy() {
  [[ ! -e $2/$3 ]] || return 0 # made while we waited for the lock
  say "installing mitmproxy $1 into $2"
  cd -- "$checkout"
  find_uv
  "$uv" venv --quiet --clear --python "$venv/bin/python" "$2" >&2 &&
    "$uv" pip install --quiet --python "$2/bin/python" --editable '.[login,idna,metrics,redis]' --group dev "mitmproxy==$1" >&2 &&
    touch -- "$2/$3"
}

# Makes `venv` one like .venv, but with mitmproxy $1. It is whole once it has a file that is called
# after the project file and the Python that it was made for.
venv_with_mitmproxy() {
  local other=$venv/mitmproxy-$1 made_for
  made_for=made-for-$(stamp_for "$(project_sum)" | sha256sum | cut -c -16)
  [[ -e $other/$made_for ]] || locked "$checkout" install_mitmproxy "$1" "$other" "$made_for"
  venv=$other
}
