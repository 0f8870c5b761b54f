#include "tools/doctor.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <sstream>

#include "build_info.h"
#include "cuda/device.h"

namespace sinkhorn {
namespace {

TEST(Doctor, NamesTheTextThatIsMissing) {
  const char* before = std::getenv("SINKHORN_JARGON");
  const std::string saved = before ? before : "";
  setenv("SINKHORN_JARGON", "/no/such/jargon.txt.gz", 1);
  std::ostringstream out;
  EXPECT_EQ(doctor(out), 0);
  before ? setenv("SINKHORN_JARGON", saved.c_str(), 1) : unsetenv("SINKHORN_JARGON");
  EXPECT_NE(out.str().find("missing   the default text: "), std::string::npos) << out.str();
  EXPECT_NE(out.str().find("/no/such/jargon.txt.gz"), std::string::npos) << out.str();
  EXPECT_EQ(out.str().find("Nothing is missing"), std::string::npos) << out.str();
}

TEST(Doctor, SaysWhatTheBuildIs) {
  std::ostringstream out;
  doctor(out);
  EXPECT_EQ(out.str().find("sinkhorn  " + std::string(build_info::version)), 0u) << out.str();
  for (const char* line : {"\nBLAS  ", "\nthreads  ", "\nmemory  ", "\nCUDA  ", "\ntext  ", "\nterminal  "})
    EXPECT_NE(out.str().find(line), std::string::npos) << line << "\n" << out.str();
}

TEST(CudaProbe, ShowsDevicesOrSaysWhyNot) {
  const cuda::Probe probe = cuda::probe();
  EXPECT_EQ(probe.devices.empty(), !probe.reason.empty()) << probe.reason;
  EXPECT_EQ(probe.runtime.empty(), build_info::cuda.empty());
  EXPECT_TRUE(probe.devices.empty() || !build_info::cuda.empty());
  for (const cuda::Device& device : probe.devices) {
    EXPECT_FALSE(device.name.empty());
    EXPECT_GE(device.compute_major, 7);  // nvcc 13 knows nothing older
    EXPECT_GT(device.memory, 0u);
  }
}

}  // namespace
}  // namespace sinkhorn
