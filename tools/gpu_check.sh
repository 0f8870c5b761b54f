#!/usr/bin/env bash
# Checks the CUDA build on this machine's GPU: tools/gpu_check.sh [BUILD]. Builds the preset cuda, or takes the folder BUILD
# with sinkhorn, sinkhorn_tests and sinkhorn_planted in it. Runs the tests on the device, the gradient checks, parity with the
# reference files (SINKHORN_SHARED, else `shared` beside the repository) and compute-sanitizer's four tools, each of which
# first has to find a planted bug; and the benchmark of a few cases. Ends in a table, and in the benchmark's; exits 1 if a
# line of it failed. Logs go to GPU_CHECK_LOGS (/tmp/gpu_check), all samples to bench.json there.
set -uo pipefail
root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
build=${1:-$root/build/cuda}
logs=${GPU_CHECK_LOGS:-/tmp/gpu_check}
export PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$logs"

if [[ $# == 0 ]]; then
  cmake -S "$root" --preset cuda >"$logs/configure.log" 2>&1 &&
    cmake --build "$build" --target sinkhorn sinkhorn_tests sinkhorn_planted >"$logs/build.log" 2>&1 ||
    { tail -n 30 "$logs"/{configure,build}.log >&2; echo "gpu_check: the build failed (above)" >&2; exit 1; }
fi
nvidia-smi -L >/dev/null 2>&1 || { echo "gpu_check: no GPU here (nvidia-smi -L)" >&2; exit 6; }

table=() failed=0
limit() { timeout "${GPU_CHECK_LIMIT:-1800}" "$@"; }
# step NAME LOG COMMAND...: runs it; its line in the table ends with the last line it printed
step() {
  local name=$1 log=$logs/$2.log start=$SECONDS result=ok
  shift 2
  "$@" >"$log" 2>&1 || { result=FAILED; failed=1; }
  table+=("$(printf '%-34s %-7s %4ds  %s' "$name" "$result" $((SECONDS - start)) "$(grep -v '^ *$' "$log" | tail -n 1 | cut -c1-90)")")
  echo "${table[-1]}" >&2
}
# finds TOOL BUG: the tool reports the planted bug (exit code 9)
finds() {
  local options=()
  [[ $2 != leak ]] || options=(--leak-check full)
  limit compute-sanitizer --tool "$1" "${options[@]}" --error-exitcode 9 "$build/sinkhorn_planted" "$2"
  [[ $? == 9 ]]
}

on_device='*OnDevice*:*OnTheDevice*:Device*:CudaProbe*'
checked='Types/OnDevice.CasesOfEveryOp*/f32:OnTheDevice.Infinities*:DeviceTensor.Goes*:DeviceOptimizer*'
step "doctor" doctor limit "$build/sinkhorn" doctor
step "tests on the device" tests limit "$build/sinkhorn_tests" --gtest_brief=1 --gtest_filter="$on_device"
step "gradient checks on the device" gradcheck limit "$build/sinkhorn" gradcheck --device cuda
fixtures=${SINKHORN_SHARED:-$(dirname -- "$root")/shared}/fixtures
if [[ -d $fixtures ]]; then
  step "parity on the device" parity limit "$build/sinkhorn" parity "$fixtures" --device cuda
fi
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    step "$tool finds a planted bug" "$tool-planted" finds "$tool" "$tool"
    options=(--tool "$tool" --error-exitcode 9)
    [[ $tool != memcheck ]] || options+=(--leak-check full)
    step "$tool over the tests" "$tool" limit compute-sanitizer "${options[@]}" "$build/sinkhorn_tests" --gtest_brief=1 \
      --gtest_filter="$checked"
  done
  step "memcheck finds a planted leak" leak-planted finds memcheck leak
else
  table+=("compute-sanitizer is missing, so its tools were not run") failed=1
fi
# speed is shown, not judged: the step fails only where a case's numbers are wrong, or it cannot run
measure() {
  limit "$build/sinkhorn" bench --case E-B4 --case E-B16 --case R --case generation --suite --json "$logs/bench.json" \
    >"$logs/bench.md" && echo "$logs/bench.md"
}
rm -f "$logs/bench.md"
step "benchmark" bench measure
printf '\n%s\n' "$(nvidia-smi -L | head -n 1)"
printf '%s\n' "${table[@]}"
if [[ -s $logs/bench.md ]]; then printf '\n'; cat "$logs/bench.md"; fi
exit $failed
