# shellcheck shell=bash
# The system packages of packages.txt: `install_packages` brings what is missing, where
# it may (root, or sudo without a password). Sourced after _setup.sh, by scripts/test.

packages_txt=$checkout/scripts/packages.txt
given_up=$venv/.capport-packages # what apt did not have, so as not to ask each time
policy=/usr/sbin/policy-rc.d
mark='# capport: no service starts while its packages are installed'

missing_packages() {
  local package command _
  while read -r package command _; do
    [[ -z $package || $package == \#* ]] || command -v "$command" >/dev/null || echo "$package"
  done <"$packages_txt"
}

# apt waits for dpkg's lock, but not for that of the lists.
apt_update() {
  local _
  for _ in {1..5}; do
    if apt_get update; then return; fi
    sleep 3
  done
  say "apt-get update fails (its reason is above): going on with the lists there are"
}

# squid, nginx and their like would start, and take ports, as soon as they are installed,
# and again at each boot.
forbid_services() {
  if [[ ! -e $policy ]] || grep -qsF "$mark" "$policy"; then
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    trap allow_services EXIT
  fi
}

allow_services() {
  if grep -qsF "$mark" "$policy"; then as_root rm -f "$policy"; fi
}

disable_services() {
  local package services service
  command -v systemctl >/dev/null || return 0
  for package in "$@"; do
    case $package in
      nginx | redis-server | squid | varnish | iodine) services=("$package") ;;
      network-manager) services=(NetworkManager) ;;
      connman) services=(connman connman-wait-online) ;;
      *) services=() ;;
    esac
    for service in "${services[@]}"; do
      as_root systemctl disable --quiet "$service" 2>/dev/null ||
        say "could not disable the service $service: it may start at the next boot"
    done
  done
}

# Install the packages named, together or, should that fail, one by one.
apt_install() {
  local package
  forbid_services
  if ! apt_get install --no-install-recommends "$@"; then
    for package in "$@"; do
      apt_get install --no-install-recommends "$package" || say "apt-get could not install $package"
    done
  fi
}

install_missing() {
  local missing
  mapfile -t missing < <(missing_packages) # anew: others may have held the lock
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  apt_update
  apt_install "${missing[@]}"
  disable_services "${missing[@]}"
  missing_packages >"$given_up"
}

# What apt did not have is asked for again a day later, or when it is something else.
install_packages() {
  local missing
  missing=$(missing_packages)
  if [[ -z $missing ]]; then return; fi
  if [[ -n $(find "$given_up" -mmin -1440 2>/dev/null) && $(<"$given_up") == "$missing" ]]; then
    say "apt-get brought no ${missing//$'\n'/, }: some tests cannot run (rm $given_up: try again)"
  elif may_be_root; then
    locked /var/lib/dpkg install_missing
  else
    say "not root, no sudo without a password: without ${missing//$'\n'/, }, some tests cannot run"
  fi
}
