# Turns the CUDA language on: finds nvcc, picks the architectures, and teaches CMake 3.25 that nvcc knows C++20.
find_program(SINKHORN_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT SINKHORN_NVCC AND NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "SINKHORN_CUDA is ON but nvcc was found neither in PATH nor in /usr/local/cuda/bin: install the "
                      "CUDA toolkit, name it with -DCMAKE_CUDA_COMPILER=/path/to/nvcc, or build with the preset cpu")
endif()
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${SINKHORN_NVCC})
endif()

include(${CMAKE_CURRENT_LIST_DIR}/architectures.cmake)

enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
