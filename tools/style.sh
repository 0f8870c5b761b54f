#!/usr/bin/env bash
# Checks the sources: `tools/style.sh` their format, `--fix` rewrites it, `--tidy` runs clang-tidy as well (minutes; needs
# a configured build/cpu). Both tools change from version to version; version 14 (Debian 12) is the one that counts.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "$0")")/.."

tool() { command -v "$1-14" || command -v "$1" || { echo "style: $1 is missing: apt-get install $1" >&2; return 2; }; }

mapfile -t sources < <(git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu')
format=$(tool clang-format)
case ${1:-} in
  --fix) "$format" -i "${sources[@]}" ;;
  '' | --tidy) "$format" --dry-run -Werror "${sources[@]}" ;;
  *) echo "style: '$1' is unknown; it can be --fix or --tidy" >&2; exit 2 ;;
esac

if [[ ${1:-} == --tidy ]]; then
  tidy=$(tool clang-tidy)
  # cuda/*.cpp and every other source that this build compiles; headers are seen through them. g++'s way around its own
  # mistakes (CMakeLists.txt) is unknown to clang.
  commands=$(mktemp -d)
  trap 'rm -rf "$commands"' EXIT
  sed -E 's/ -m(move|store)-max=[0-9]+//g' build/cpu/compile_commands.json >"$commands/compile_commands.json"
  grep -oP '"file": "\K[^"]+' build/cpu/compile_commands.json |
    xargs -P "$(nproc)" -n 1 "$tidy" -p "$commands" --quiet --extra-arg=-Wno-unknown-warning-option \
      2> >(grep -v 'warnings generated' >&2)  # g++ has other warnings; counts of hidden ones say nothing
fi
