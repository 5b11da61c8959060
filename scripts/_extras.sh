# shellcheck shell=bash
# What tests use besides .venv, sourced after _setup.sh: `install_extras` brings the system
# packages of packages.txt, where it may, and venvs in .venv for what cannot be in it.

# What uv installs into each venv. schemathesis holds the API against its OpenAPI document; it and
# mitmproxy want different versions of typing-extensions. `bare` is the portal without the extras of
# pyproject.toml.
declare -A venvs=([schemathesis]='schemathesis>=4.20,<5' [bare]=--editable=.)
policy=/usr/sbin/policy-rc.d
mark='# capport: no service starts while its packages are installed'

missing_packages() {
  local package command _
  while read -r package command _; do
    [[ -z $package || $package == \#* ]] || command -v "$command" >/dev/null || echo "$package"
  done <"$checkout/scripts/packages.txt"
}

# Venv $1 of these is whole once this file is in it: its name says what it was made for.
whole() {
  local sum
  sum=$({ echo "${venvs[$1]}" && stamp_for "$(project_sum)"; } | sha256sum)
  printf '%s' "$venv/$1/made-for-${sum:0:16}"
}

missing_venvs() {
  local name
  for name in "${!venvs[@]}"; do [[ -e $(whole "$name") ]] || echo "$name"; done
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

# Make venv $1 of these.
fill_venv() {
  local folder=$venv/$1 packages
  [[ ! -e $(whole "$1") ]] || return 0 # made while we waited for the lock
  read -ra packages <<<"${venvs[$1]}"
  say "installing ${packages[*]} into $folder"
  cd -- "$checkout" # pyproject.toml has the date of the packages to take
  find_uv
  "$uv" venv --quiet --clear --python "$venv/bin/python" "$folder" >&2 &&
    "$uv" pip install --quiet --python "$folder/bin/python" "${packages[@]}" >&2 &&
    touch -- "$(whole "$1")"
}

bring_extras() {
  local name
  ! may_install || locked /var/lib/dpkg install_packages
  for name in $(missing_venvs); do
    (fill_venv "$name") || say "uv could not install ${venvs[$name]} (its reason is above)"
  done
  printf '%s\n' "$EUID" "$(missing_extras)" >"$1"
}

# A package that could not be installed is tried again a day later, by another user, or when the
# list has changed.
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

# Makes `venv` one like .venv, but with mitmproxy $1.
venv_with_mitmproxy() {
  venvs[mitmproxy-$1]="--editable=.[login,idna,metrics,redis,fast] --group=dev mitmproxy==$1"
  locked "$checkout" fill_venv "mitmproxy-$1"
  venv=$venv/mitmproxy-$1
}
