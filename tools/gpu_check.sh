#!/usr/bin/env bash
# Checks the CUDA build on this machine's GPU: tools/gpu_check.sh [BUILD]. Builds the preset cuda, or takes the folder BUILD
# with sinkhorn, sinkhorn_tests and sinkhorn_planted in it. Runs the tests on the device, the gradient checks, parity with the
# reference files (SINKHORN_SHARED, else `shared` beside the repository), repeated and resumed training, memory that ends, and
# compute-sanitizer's four tools, each of which first has to find a planted bug; and the benchmark of a few cases, alone.
# Ends in a table, and in the benchmark's; exits 1 if a line of it failed. Takes less than 10 minutes with 16 cores, building
# included. Logs go to GPU_CHECK_LOGS (/tmp/gpu_check), the benchmark's samples to bench.json there; GPU_CHECK_BENCH=no leaves
# the benchmark out.
set -uo pipefail
root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
build=${1:-$root/build/cuda}
logs=${GPU_CHECK_LOGS:-/tmp/gpu_check}
export PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$logs"
rm -f "$logs"/*.line "$logs/bench.md"

# step NAME LOG COMMAND...: runs it. Its line in the table ends with what it counted, else with the last line it printed.
steps=()
step() {
  steps+=("$2")
  run_step "$@"
}
# The same beside what follows, until `wait`.
beside() {
  steps+=("$2")
  run_step "$@" &
}
run_step() {
  local name=$1 log=$logs/$2.log line=$logs/$2.line start=$SECONDS result=ok
  shift 2
  "$@" >"$log" 2>&1 </dev/null || result=FAILED
  printf '%-38s %-6s %4ds  %s\n' "$name" "$result" $((SECONDS - start)) "$(last_words "$log" | cut -c1-110)" >"$line"
  cat "$line" >&2
}
last_words() {
  grep -a -m 1 '^\[  FAILED  \] [A-Z]' "$1" || grep -a ' comparisons of CUDA with ' "$1" ||
    grep -a 'ERROR SUMMARY: [1-9]' "$1" | tail -n 1 || grep -a '^out of memory says: ' "$1" ||
    grep -a 'SUMMARY: ' "$1" | tail -n 1 || grep -av '^ *$' "$1" | tail -n 1
}
limit() { timeout "${GPU_CHECK_LIMIT:-1800}" "$@"; }
# tests FILTER: fails, too, where the filter finds none
tests() {
  local said
  said=$(limit "$build/sinkhorn_tests" --gtest_brief=1 --gtest_filter="$1" 2>&1)
  local status=$?
  echo "$said"
  [[ $status == 0 ]] && grep -q '^\[  PASSED  \] [1-9]' <<<"$said"
}

build_all() {
  cmake -S "$root" --preset cuda && cmake --build "$build" --target sinkhorn sinkhorn_tests sinkhorn_planted
}
if [[ $# == 0 ]]; then
  step "build" build build_all
  grep -q FAILED "$logs/build.line" &&
    { tail -n 30 "$logs/build.log" >&2; echo "gpu_check: the build failed (above)" >&2; exit 1; }
fi
nvidia-smi -L >/dev/null 2>&1 || { echo "gpu_check: no GPU here (nvidia-smi -L)" >&2; exit 6; }
# Else the checks below would pass over kernels that this build does not have.
doctor() {
  local said
  said=$(limit "$build/sinkhorn" doctor 2>&1)
  local status=$?
  echo "$said"
  [[ $status == 0 ]] && ! grep -q "Hopper's own" <<<"$said"
}
step "doctor" doctor doctor
step "out of memory, and on from there" memory tests 'DeviceProgram.MemoryThatEnds*'

# Together from here: none of them takes much of the GPU's memory, and most of their time passes on the CPU.
fixtures=${SINKHORN_SHARED:-$(dirname -- "$root")/shared}/fixtures
[[ ! -d $fixtures ]] || beside "parity on the device" parity limit "$build/sinkhorn" parity "$fixtures" --device cuda
beside "gradient checks on the device" gradcheck limit "$build/sinkhorn" gradcheck --device cuda
beside "CUDA against CPU and f64, guarded" ops tests 'Types/OnDevice.*'
beside "no output depends on the future" future tests 'DeviceModel.NoOutputDependsOnTheFuture'
beside "three runs and a resumed one: bits" runs tests 'DeviceProgram.ThreeRuns*'
beside "from GPU to CPU and back" devices tests 'DeviceProgram.ACheckpoint*'
beside "other tests on the device" tests tests \
  '*OnDevice*:*OnTheDevice*:Device*:CudaProbe*:-Types/OnDevice.*:DeviceModel.NoOutputDepends*:DeviceProgram.*'

# finds TOOL BUG: the tool reports the planted bug (exit code 9)
finds() {
  local options=()
  [[ $2 != leak ]] || options=(--leak-check full)
  limit compute-sanitizer --tool "$1" "${options[@]}" --error-exitcode 9 "$build/sinkhorn_planted" "$2"
  [[ $? == 9 ]]
}
# Every op in every type, attention at the sizes of models and in each of its widths and precisions, products of f32 by
# tensor cores, what else has kernels, generation, and a training step with products and attention in bf16. initcheck does
# not see what cuBLAS stores by Hopper's bulk copies, so it takes the product's readers for readers of nothing: there the
# step stays out.
checked='Types/OnDevice.CasesOfEveryOp*:Types/OnDevice.AttentionOfModels*/bf16:OnTheDevice.*:DeviceTensor.Goes*'
checked+=':Patterns/AttentionOnTheDevice.*width*:PlanesGemmOnTheDevice.*:DeviceOptimizer*:DeviceModel.GeneratesWhat*'
sanitized() {
  local options=(--tool "$1" --error-exitcode 9) filter=$checked
  [[ $1 != memcheck ]] || options+=(--leak-check full)
  [[ $1 == initcheck ]] || filter+=':DeviceModel.MakesAStep*'
  # minutes; in their place small attentions, without dropout and with it, and of two tiles a bucket
  if [[ $1 == racecheck ]]; then
    filter=${filter/Types\/OnDevice.AttentionOfModels\*\/bf16:/}
    filter=${filter/.\*width\*/.*\/padding_in_*:*AttentionOnTheDevice.*\/dropout_in_*:*buckets_of_75_in_*}
  fi
  # Plain launches, so that a fault is laid at its kernel's door.
  SINKHORN_CUDA_GRAPHS=0 SINKHORN_DRAWS=1 limit compute-sanitizer "${options[@]}" "$build/sinkhorn_tests" --gtest_brief=1 \
    --gtest_filter="$filter:-OnTheDevice.BadIndices*"
}
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    beside "$tool finds a planted bug" "$tool-planted" finds "$tool" "$tool"
    beside "$tool over the tests" "$tool" sanitized "$tool"
  done
  beside "memcheck finds a planted leak" leak-planted finds memcheck leak
else
  step "compute-sanitizer is missing" sanitizers false
fi
wait

# Speed is shown, not judged: the step fails only where a case's numbers are wrong, or it cannot run.
measure() {
  local cases=(--case E-B4 --case E-B16 --case R --case examples --case readme-full --case generation)
  limit "$build/sinkhorn" bench "${cases[@]}" --suite --json "$logs/bench.json" >"$logs/bench.md" && echo "$logs/bench.md"
}
[[ ${GPU_CHECK_BENCH:-} == no ]] || step "benchmark" bench measure

printf '\n%s\n' "$(nvidia-smi -L | head -n 1)"
for log in "${steps[@]}"; do cat "$logs/$log.line"; done
if [[ -s $logs/bench.md ]]; then printf '\n'; cat "$logs/bench.md"; fi
! grep -q ' FAILED ' "$logs"/*.line
