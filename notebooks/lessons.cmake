# The lessons: a folder notebooks/lessons/NN_name is one. Its walk.cpp is part of the program; its check.cpp becomes a static
# library of its own, which `sinkhorn lesson verify` links with the learner's file. lesson_kit.json says how to do that.
file(GLOB lesson_folders CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/notebooks/lessons notebooks/lessons/*_*)
set(lesson_optimisation $<$<NOT:$<CONFIG:Debug>>:-O1>)  # their own code is small, and compiles in two thirds of the time
set(lesson_walks)
set(lesson_declarations)
set(lesson_entries)
foreach(lesson ${lesson_folders})
  if(NOT lesson MATCHES "^([0-9][0-9])_[a-z0-9_]+$")
    message(FATAL_ERROR "notebooks/lessons/${lesson}: a lesson's folder is named NN_name, as in 06_softmax")
  endif()
  string(REGEX REPLACE "^0" "" number ${CMAKE_MATCH_1})
  list(APPEND lesson_walks notebooks/lessons/${lesson}/walk.cpp)
  sinkhorn_library(lesson_${lesson} SOURCES notebooks/lessons/${lesson}/check.cpp LINK sinkhorn_kit)
  set_target_properties(lesson_${lesson} PROPERTIES ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lessons)
  string(APPEND lesson_declarations
    "namespace lesson_${lesson} {\nvoid walk(Page&);\nQuiz quiz(Rng);\n}  // namespace lesson_${lesson}\n")
  string(APPEND lesson_entries "      {${number}, \"${lesson}\", lesson_${lesson}::walk, lesson_${lesson}::quiz},\n")
  target_compile_options(lesson_${lesson} PRIVATE ${lesson_optimisation})
  list(APPEND lesson_checks lesson_${lesson})
endforeach()
configure_file(notebooks/kit/lessons.cpp.in generated/lessons.cpp @ONLY)

sinkhorn_library(sinkhorn_lessons SOURCES ${lesson_walks} ${PROJECT_BINARY_DIR}/generated/lessons.cpp LINK sinkhorn_kit)
target_compile_options(sinkhorn_lessons PRIVATE ${lesson_optimisation})
# The main() of the programs that verify makes, and all it links.
sinkhorn_library(sinkhorn_verify SOURCES notebooks/verify/main.cpp LINK sinkhorn_kit)
set_target_properties(sinkhorn_verify PROPERTIES ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lessons)
add_custom_target(lesson_checks DEPENDS ${lesson_checks} sinkhorn_verify)

# How a learner's file is compiled: as the library was, but quickly. Once for the build folder, once, with paths relative to the
# file, for an installed tree.
set(lesson_flags -std=c++20 -O1 -Wall -Wextra -fno-math-errno -fno-trapping-math -fopenmp-simd)
if(SINKHORN_SANITIZE)
  list(APPEND lesson_flags -fsanitize=${SINKHORN_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
endif()
set(lesson_libraries sinkhorn_kit sinkhorn_models sinkhorn_nn sinkhorn_autograd sinkhorn_emulator)
set(lesson_system_libraries $<TARGET_FILE:fmt::fmt> ${BLAS_LIBRARIES} -lpthread)
if(SINKHORN_CUDA)
  list(APPEND lesson_system_libraries $<TARGET_FILE:CUDA::cublas> $<TARGET_FILE:CUDA::cudart_static> -ldl -lrt)
endif()
function(write_lesson_kit file root checks)
  cmake_parse_arguments(ARG "" "" "LIBRARIES" ${ARGN})
  set(lists)
  foreach(list flags libraries)
    if(list STREQUAL "flags")
      set(values ${lesson_flags})
    else()
      set(values ${ARG_LIBRARIES} ${lesson_system_libraries})
    endif()
    list(JOIN values "\",\n    \"" joined)
    string(APPEND lists ",\n  \"${list}\": [\n    \"${joined}\"]")
  endforeach()
  file(GENERATE OUTPUT ${file} CONTENT
    "{\n  \"root\": \"${root}\",\n  \"checks\": \"${checks}\",\n  \"compiler\": \"${CMAKE_CXX_COMPILER}\"${lists}\n}\n")
endfunction()
list(TRANSFORM lesson_libraries REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE built_libraries)
write_lesson_kit(${PROJECT_BINARY_DIR}/lesson_kit.json ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/lessons
  LIBRARIES ${built_libraries})
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_LIBDIR BASE_DIRECTORY ${CMAKE_INSTALL_FULL_DATADIR}/sinkhorn OUTPUT_VARIABLE lib)
list(TRANSFORM lesson_libraries REPLACE "(.+)" "${lib}/$<TARGET_FILE_NAME:\\1>" OUTPUT_VARIABLE installed_libraries)
write_lesson_kit(${PROJECT_BINARY_DIR}/installed/lesson_kit.json ./ ${lib}/sinkhorn LIBRARIES ${installed_libraries})

install(TARGETS ${lesson_libraries} ARCHIVE)
install(TARGETS ${lesson_checks} sinkhorn_verify ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/sinkhorn)
install(FILES ${PROJECT_BINARY_DIR}/installed/lesson_kit.json DESTINATION ${CMAKE_INSTALL_DATADIR}/sinkhorn)
install(DIRECTORY autograd nn models cuda notebooks tools DESTINATION ${CMAKE_INSTALL_DATADIR}/sinkhorn
  FILES_MATCHING PATTERN "*.h" PATTERN "*.cpp" PATTERN "*.cu" PATTERN "*.toml")
