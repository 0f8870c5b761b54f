// The shape of the house: who may include whom, and where CUDA may appear.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "build_info.h"

namespace {

namespace fs = std::filesystem;

/// Folder -> folders whose headers it may include. `cuda` and `autograd` call each other but only cuda includes:
/// autograd knows nothing of ours.
const std::map<std::string, std::set<std::string>> allowed = {
    {"autograd", {"autograd"}},
    {"cuda", {"cuda", "autograd"}},
    {"nn", {"nn", "autograd"}},
    {"models", {"models", "nn", "autograd"}},
    {"notebooks", {"notebooks", "models", "nn", "autograd", "cuda"}},
    {"tools", {"tools", "notebooks", "models", "nn", "autograd", "cuda"}},
    {"tests", {"tests", "tools", "notebooks", "models", "nn", "autograd", "cuda"}},
};

/// What is wrong with one source file, given by its path from the root and its text; one line each.
std::vector<std::string> faults(const std::string& path, const std::string& text) {
  static const std::regex include(R"re(^\s*#\s*include\s*([<"])([^>"]+)[>"])re");
  static const std::regex launch(R"(<<<|cuda_runtime|cublas|\bcuda[A-Z]\w*\s*\()");
  const std::string folder = path.substr(0, path.find('/'));
  std::vector<std::string> found;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const std::string where = path + ":" + std::to_string(number) + ": ";
    std::smatch match;
    if (std::regex_search(line, match, include) && match[1] == "\"" && match[2] != "build_info.h") {
      const std::string header = match[2];
      const std::size_t slash = header.find('/');
      if (slash == std::string::npos || !allowed.contains(header.substr(0, slash)) ||
          header.find("..") != std::string::npos) {
        found.push_back(where + header + " is not a path from the root of the repository");
      } else if (!allowed.at(folder).contains(header.substr(0, slash))) {
        found.push_back(where + folder + " must not include " + header);
      }
    }
    const bool about_cuda = folder == "cuda" || path == "tests/structure_test.cpp";
    if (!about_cuda && std::regex_search(line, launch)) found.push_back(where + "CUDA calls belong in cuda/: " + line);
  }
  return found;
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Structure, NoForbiddenIncludeAndCudaOnlyInItsFolder) {
  const fs::path root = sinkhorn::build_info::source_dir;
  int files = 0;
  for (const auto& [folder, unused] : allowed) {
    if (!fs::exists(root / folder)) continue;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string kind = entry.path().extension();
      if (kind != ".h" && kind != ".cpp" && kind != ".cu") continue;
      ++files;
      for (const std::string& fault : faults(fs::relative(entry.path(), root), read(entry.path())))
        ADD_FAILURE() << fault;
    }
  }
  EXPECT_GT(files, 5) << "the sources were not found under " << root;
}

TEST(Structure, EveryHeaderBeginsWithItsPurpose) {
  const fs::path root = sinkhorn::build_info::source_dir;
  for (const auto& [folder, unused] : allowed) {
    if (!fs::exists(root / folder)) continue;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / folder)) {
      if (entry.path().extension() != ".h") continue;
      EXPECT_TRUE(read(entry.path()).starts_with("// ")) << entry.path() << " does not begin with a line of purpose";
    }
  }
}

TEST(Structure, PlantedFaultsAreFound) {
  const auto one = [](const char* path, const char* text) { return faults(path, text).size() == 1; };
  EXPECT_TRUE(one("autograd/tape.h", "#include \"nn/linear.h\"\n"));
  EXPECT_TRUE(one("autograd/cpu/map.cpp", "#include <vector>\n  #  include \"cuda/device.h\"\n"));
  EXPECT_TRUE(one("nn/linear.h", "#include \"models/config.h\"\n"));
  EXPECT_TRUE(one("nn/linear.cpp", "#include \"cuda/device.h\"\n"));
  EXPECT_TRUE(one("models/lm.cpp", "#include \"tools/config.h\"\n"));
  EXPECT_TRUE(one("nn/linear.cpp", "#include \"../autograd/tensor.h\"\n"));
  EXPECT_TRUE(one("nn/linear.cpp", "#include \"linear.h\"\n"));
  EXPECT_TRUE(one("tools/train.cpp", "#include <cuda_runtime.h>\n"));
  EXPECT_TRUE(one("autograd/pool.cpp", "  cudaMalloc(&p, bytes);\n"));
  EXPECT_TRUE(one("tests/ops_test.cpp", "scale<<<1, 32>>>(x);\n"));
}

TEST(Structure, AllowedLinesPass) {
  EXPECT_TRUE(
      faults("nn/linear.cpp", "#include \"nn/linear.h\"\n#include <span>\n#include \"autograd/tensor.h\"\n").empty());
  EXPECT_TRUE(
      faults("cuda/device.cu", "#include <cuda_runtime.h>\n#include \"autograd/tensor.h\"\nf<<<1, 2>>>();\n").empty());
  EXPECT_TRUE(faults("tools/doctor.cpp", "#include \"build_info.h\"\n#include \"cuda/device.h\"\n").empty());
}

}  // namespace
