# The lessons: a folder notebooks/lessons/NN_name is one. Its walk.cpp is part of the program; its check.cpp becomes a static
# library of its own, which `sinkhorn lesson verify` links with the learner's file. lesson_kit.json says how to do that.
file(GLOB lesson_folders CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/notebooks/lessons notebooks/lessons/*_*)
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
  list(APPEND lesson_checks lesson_${lesson})
endforeach()
configure_file(notebooks/kit/lessons.cpp.in generated/lessons.cpp @ONLY)

sinkhorn_library(sinkhorn_lessons SOURCES ${lesson_walks} ${PROJECT_BINARY_DIR}/generated/lessons.cpp LINK sinkhorn_kit)
# The main() of the programs that verify makes, and all it links.
sinkhorn_library(sinkhorn_verify SOURCES notebooks/verify/main.cpp LINK sinkhorn_kit)
set_target_properties(sinkhorn_verify PROPERTIES ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lessons)
add_custom_target(lesson_checks DEPENDS ${lesson_checks} sinkhorn_verify)
