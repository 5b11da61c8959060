# shellcheck shell=bash
# schemathesis, which holds the API against its OpenAPI document: `install_schemathesis` puts
# it into a venv of its own inside .venv, for it and mitmproxy want different versions of
# typing-extensions. Sourced after _setup.sh, by scripts/test.

schemathesis='schemathesis>=4.20,<5'
schemathesis_venv=$venv/schemathesis
schemathesis_given_up=$venv/.capport-schemathesis

# What the venv in $schemathesis_venv was made for, in its last file to be written.
has_schemathesis() {
  [[ -x $schemathesis_venv/bin/schemathesis && -r $schemathesis_venv/.made-for ]] &&
    [[ $(<"$schemathesis_venv/.made-for") == "$schemathesis" ]]
}

make_schemathesis() {
  ! has_schemathesis || return 0 # made while we waited for the lock
  say "installing $schemathesis into $schemathesis_venv"
  cd -- "$checkout" # for the date in pyproject.toml that packages are taken of
  pip_settings_for_uv
  find_uv
  if "$uv" venv --quiet --clear --python "$venv/bin/python" "$schemathesis_venv" >&2 &&
    "$uv" pip install --quiet --python "$schemathesis_venv/bin/python" "$schemathesis" >&2; then
    printf '%s\n' "$schemathesis" >"$schemathesis_venv/.made-for"
  else
    say "uv could not install $schemathesis (its reason is above): its test cannot run"
    touch -- "$schemathesis_given_up"
  fi
}

# Without a network it is tried again a day later.
install_schemathesis() {
  if has_schemathesis; then return; fi
  if [[ -n $(find "$schemathesis_given_up" -mmin -1440 2>/dev/null) ]]; then
    say "there was no $schemathesis: its test cannot run (rm $schemathesis_given_up: try again)"
  elif [[ ! -w $venv ]]; then
    say "$venv belongs to $(stat -c %U -- "$venv"): without schemathesis, its test cannot run"
  else
    locked "$venv" make_schemathesis
  fi
}
