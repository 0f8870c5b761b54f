# Which architectures to compile for, where nobody said: what this machine's GPUs are; without one Ampere and Hopper, and
# Hopper's PTX for whatever comes later. Hopper is 90a, not the 90 that `native` makes of it, which would leave out the
# instructions that no other card has, and with them most of its speed.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  RESULT_VARIABLE no_gpu OUTPUT_VARIABLE capabilities ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+[.][0-9]+" capabilities "${capabilities}")
  if(no_gpu EQUAL 0 AND capabilities)
    list(TRANSFORM capabilities REPLACE "[.]" "")
    list(TRANSFORM capabilities REPLACE "^90$" "90a")
    list(TRANSFORM capabilities APPEND "-real")
    list(REMOVE_DUPLICATES capabilities)
    set(CMAKE_CUDA_ARCHITECTURES ${capabilities})
  endif()
endif()
