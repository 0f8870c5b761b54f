// Which architectures a CUDA build is made for, with a stand-in for nvidia-smi.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "build_info.h"
#include "tests/shared.h"
#include "tests/tools/program.h"

namespace sinkhorn {
namespace {

namespace fs = std::filesystem;

// What cuda/architectures.cmake chooses where nvidia-smi is this script.
std::string architectures_with(const std::string& nvidia_smi) {
  const testing::TemporaryFolder folder;
  const fs::path fake = folder.path / "nvidia-smi", script = folder.path / "choose.cmake",
                 chosen = folder.path / "chosen";
  std::ofstream(fake) << "#!/bin/sh\n" << nvidia_smi << "\n";
  fs::permissions(fake, fs::perms::owner_all);
  std::ofstream(script) << "include(\"" << build_info::source_dir << "/cuda/architectures.cmake\")\n"
                        << "file(WRITE \"" << chosen.string() << "\" \"${CMAKE_CUDA_ARCHITECTURES}\")\n";
  const int status =
      std::system(("PATH=\"" + folder.path.string() + ":$PATH\" cmake -P \"" + script.string() + "\"").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 0);
  return testing::content_of(chosen);
}

TEST(Architectures, AreThoseOfThisMachinesGpus) {
  EXPECT_EQ(architectures_with("echo 9.0"), "90a-real") << "Hopper has instructions that 90 leaves out";
  EXPECT_EQ(architectures_with("echo 8.0; echo 8.0"), "80-real");
  EXPECT_EQ(architectures_with("echo 9.0; echo 8.9"), "90a-real;89-real");
  EXPECT_EQ(architectures_with("echo 12.0"), "120-real");
  const std::string none = "80-real;90a-real;90-virtual";
  EXPECT_EQ(architectures_with("echo No devices were found; exit 6"), none);
  EXPECT_EQ(architectures_with("echo [N/A]"), none) << "a driver that does not know the question";
}

}  // namespace
}  // namespace sinkhorn
