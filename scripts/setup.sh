# Creates .venv in the repository root and installs imr in it; bash scripts source this file.
# shellcheck shell=bash
#
# setup EXTRAS    EXTRAS are those of pyproject.toml, separated by commas.
#
# .venv/installed records the installation, so that pip runs only if something has changed.

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
venv=$root/.venv
python=$venv/bin/python

fail() {
  printf 'error: %s\n' "$1" >&2
  shift
  if [ $# -gt 0 ]; then printf '  %s\n' "$@" >&2; fi
  exit 2
}

# Prints what a script has at its head, and ends.
usage() {
  awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "$1"
  exit
}

say() {
  printf '%s\n' "$*" >&2
}

# Stops unless the value of a flag has the form of an extended regular expression, from end to end.
# need FLAG VALUE EXPRESSION WORDS
need() {
  # Ranges of letters mean ASCII alone.
  local LC_ALL=C
  [[ $2 =~ ^($3)$ ]] || fail "$1 must be $4; found $(printf '%q' "$2")."
}

# Stops if a run folder has an address that imr.lab.files.place refuses.
need_place() {
  local LC_ALL=C
  [[ ! $1 =~ ^[A-Za-z][A-Za-z0-9+.-]+:/ ]] || [[ $1 =~ ^gs://[^/]+/.*[^/] && ! $1 =~ [*?[] ]] ||
    fail "$1 cannot be written to. Give a folder, or gs://BUCKET/FOLDER, which has none of * ? [."
}

# Sets `module` to what Python runs by -m, or `script` to a file, or both to nothing; stops if there is
# no program.
# shellcheck disable=SC2034 # for scripts that source this
program() {
  module='' script=''
  while [ $# -gt 0 ]; do
    if [[ $1 =~ ^-[bBdEiIOPqsSuvx]*([cmWX])(.*)$ ]]; then
      # The value of the option is the rest of the word, or the next word.
      [ -n "${BASH_REMATCH[2]}" ] || shift
      case "${BASH_REMATCH[1]}" in
        m)
          module=${BASH_REMATCH[2]:-${1-}}
          [ -z "$module" ] || return 0
          ;;
        c) [ $# = 0 ] || return 0 ;;
      esac
    elif [[ ! $1 =~ ^-[bBdEiIOPqsSuvx]+$ ]]; then
      if [[ -z $1 || $1 == --* ]]; then break; fi
      script=$1
      return 0
    fi
    if [ $# -gt 0 ]; then shift; fi
  done
  fail "say what to run, before its flags: -m experiments.NAME, -c CODE or a file."
}

# Stops if the `module`, where it is one of the repository, or the `script` is nothing that Python can run.
# LOOK_M and LOOK_S look for them as `test` does, by -f or -e and a path, where they will be run.
# need_program LOOK_M LOOK_S WORDS
need_program() {
  local path=${module//.//}
  [ -z "$module" ] ||
    { [[ .$module. != *..* ]] && { "$1" -f "$path.py" || "$1" -f "$path/__main__.py" || ! "$1" -e "${path%%/*}"; }; } ||
    fail "there is no module $module $3" "A folder is one that can be run if it holds a __main__.py."
  [ -z "$script" ] || { [[ $script == *.py ]] && "$2" -f "$script"; } || "$2" -f "$script/__main__.py" ||
    fail "there is no program $(printf '%q' "$script") $3" \
      "A program is a file whose name ends in .py, or a folder that holds a __main__.py."
}

# The same of any module, once there is a Python that finds them.
find_module() {
  local code='
import importlib.util, sys
found = importlib.util.find_spec(sys.argv[1])
if found is not None and found.submodule_search_locations is not None:
    found = importlib.util.find_spec(sys.argv[1] + ".__main__")
sys.exit(found is None)'
  [ -z "$module" ] || "$python" -P -c "$code" "$module" 2>/dev/null ||
    fail "Python finds no module $module that it could run, in the repository or among its packages."
}

# Sets `out` to the run folder among the flags of an experiment, or to nothing, and `words` to the others.
# shellcheck disable=SC2034 # for scripts that source this
take_out() {
  out='' words=()
  while [ $# -gt 0 ]; do
    case "$1" in
      --out)
        out=${2:-}
        shift
        ;;
      --out=*) out=${1#--out=} ;;
      *) words+=("$1") ;;
    esac
    if [ $# -gt 0 ]; then shift; fi
  done
}

# Prints words so that a shell reads them as they are.
quoted() {
  local text
  printf -v text '%q ' "$@"
  printf '%s' "${text% }"
}

# Stops if an experiment refuses its flags or its run folder. Other programs have no --check.
check_run() {
  local module script
  program "$@"
  if [[ $module == experiments.* ]]; then
    JAX_PLATFORMS=cpu "$python" -P "$@" --check || exit
  fi
}

# Succeeds if a Python runs and is new enough.
is_new_enough() {
  "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints the first Python that can create the environment.
find_python() {
  local candidate version found='' bare=''
  for candidate in ${IMR_PYTHON:+"$IMR_PYTHON"} python3.14 python3.13 python3.12 python3.11 python3; do
    if version=$("$candidate" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
      found="$found${found:+, }$candidate is $version"
    elif command -v -- "$candidate" >/dev/null || [ "$candidate" = "${IMR_PYTHON:-}" ]; then
      found="$found${found:+, }$candidate does not run"
      continue
    fi
    if ! is_new_enough "$candidate"; then
      continue
    elif "$candidate" -I -c 'import ensurepip, venv' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
    bare=${bare:-$version}
  done
  if [ -n "$bare" ]; then
    fail "Python $bare is installed, but its venv module cannot create an environment (found: $found)." \
      "On Debian or Ubuntu: sudo apt-get install python$bare-venv"
  fi
  fail "imr needs Python 3.11 or newer (found: ${found:-none})." \
    "Install one (on Debian or Ubuntu: sudo apt-get install python3 python3-venv)," \
    "or give the path of one: IMR_PYTHON=/path/to/python $0"
}

make_venv() {
  local base
  base=$(find_python)
  if [ -n "${IMR_PYTHON:-}" ] && [ "$base" != "$IMR_PYTHON" ]; then
    say "IMR_PYTHON=$IMR_PYTHON cannot be used (it must run, be 3.11 or newer and have venv)."
  fi
  say "Creating .venv with $base ..."
  rm -rf -- "$venv"
  "$base" -m venv "$venv" ||
    fail "$base could not create an environment in $venv; see above." \
      "On Debian or Ubuntu, its venv package may be missing: sudo apt-get install python3-venv"
}

has_pip() {
  "$python" -m pip --version >/dev/null 2>&1
}

# Identifies an installation: its packages, its Python and the path of the repository.
fingerprint() {
  "$python" -I - "$root" <<'EOF'
import hashlib, pathlib, sys
root = sys.argv[1]
text = pathlib.Path(root, "pyproject.toml").read_bytes() + f"{sys.version}\n{root}".encode()
print(hashlib.sha256(text).hexdigest())
EOF
}

# Succeeds if a list of extras, separated by commas, holds all those of another.
holds() {
  local all=",$1," extra
  all=${all/,dev,/,dev,experiments,gcs,lens,} # as pyproject.toml has it
  for extra in ${2//,/ }; do
    [[ $all == *",$extra,"* ]] || return
  done
}

setup() {
  local extras=$1 current there='' recorded=''
  if ! is_new_enough "$python"; then
    make_venv
  fi
  current=$(fingerprint)
  if [ -f "$venv/installed" ]; then
    read -r there recorded <"$venv/installed" || true
  fi
  if [ "$recorded" != "$current" ]; then
    there=''
  elif holds "$there" "$extras"; then
    return
  fi
  rm -f -- "$venv/installed"
  if ! has_pip; then
    # An installation was interrupted, or the tool that created .venv leaves pip out.
    "$python" -m ensurepip >/dev/null 2>&1 || true
    has_pip || { make_venv && there=''; }
    current=$(fingerprint)
  fi
  say "Installing imr[$extras] into .venv (a few minutes the first time) ..."
  (cd -- "$root" && "$python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]") ||
    fail 'pip could not install imr; see above. Run the same command again once that is solved.'
  printf '%s %s\n' "${there:+$there,}$extras" "$current" >"$venv/installed.tmp"
  mv -- "$venv/installed.tmp" "$venv/installed"
}
