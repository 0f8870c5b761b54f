#include "tools/doctor.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "build_info.h"
#include "cuda/device.h"
#include "cuda/planes_gemm.h"
#include "notebooks/kit/drawing.h"
#include "tools/corpus.h"

namespace sinkhorn {
namespace {

/// A field of /proc/meminfo in GiB, or 0 where there is none.
double meminfo_gib(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  double kib = 0;
  while (file >> name >> kib) {
    if (name == field + ":") return kib / (1 << 20);
    file.ignore(64, '\n');
  }
  return 0;
}

std::string terminal() {
  if (!isatty(STDOUT_FILENO)) return "stdout is no terminal: plain lines, no colours";
  winsize size{};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  const char* term = std::getenv("TERM");
  return fmt::format("{}, {}{}", term ? term : "TERM is not set",
                     known ? fmt::format("{} columns", size.ws_col) : "unknown width",
                     drawing::style_of_stdout().colour ? "" : ", no colours");
}

}  // namespace

int doctor(std::ostream& out) {
  std::vector<std::string> missing;
  const auto line = [&](std::string_view what, std::string_view found) {
    out << fmt::format("{:<10}{}\n", what, found);
  };

  line("sinkhorn", fmt::format("{}, {} with {}{}{}", build_info::version, build_info::build_type, build_info::compiler,
                               build_info::sanitizers.empty() ? "" : ", sanitizers ", build_info::sanitizers));

  line("BLAS", build_info::blas.empty() ? "none: matrix products use a plain loop" : build_info::blas);
  if (build_info::blas.empty())
    missing.push_back("OpenBLAS, for fast training: apt-get install libopenblas-dev, then build again");

  line("threads", fmt::format("{}", std::thread::hardware_concurrency()));
  line("memory",
       fmt::format("{:.1f} GiB, {:.1f} GiB of it available", meminfo_gib("MemTotal"), meminfo_gib("MemAvailable")));

  const cuda::Probe probe = cuda::probe();
  if (build_info::cuda.empty()) {
    line("CUDA", probe.reason);
  } else {
    line("CUDA", fmt::format("runtime {}, driver {}, cuBLAS {}, built by nvcc {} for {}", probe.runtime,
                             probe.driver.empty() ? "none" : probe.driver, probe.blas.empty() ? "unknown" : probe.blas,
                             build_info::cuda, build_info::cuda_architectures));
    if (probe.devices.empty()) {
      line("GPU", "none: " + probe.reason);
      missing.push_back("a GPU, for fast training: " + probe.reason);
    }
  }
  for (const cuda::Device& device : probe.devices) {
    line("GPU", fmt::format("{}, compute capability {}.{}, {} multiprocessors, {:.1f} GiB, {:.1f} GiB of it free",
                            device.name, device.compute_major, device.compute_minor, device.multiprocessors,
                            static_cast<double>(device.memory) / (1 << 30),
                            static_cast<double>(device.free_memory) / (1 << 30)));
  }
  if (!probe.devices.empty() && probe.devices.front().compute_major == 9 && !cuda::PlanesGemm::is_here())
    missing.push_back(
        "Hopper's own instructions, for several times the speed: build again with -DCMAKE_CUDA_ARCHITECTURES=90a-real");
  line("training", probe.devices.empty() ? "on the CPU" : "on " + probe.devices.front().name);

  const Corpus text = load_corpus("");
  line("text", text.name);
  if (!text.note.empty()) missing.push_back("the default text: " + text.note);

  line("terminal", terminal());
  for (const std::string& what : missing) line("missing", what);
  if (missing.empty()) out << "Nothing is missing.\n";
  return 0;
}

}  // namespace sinkhorn
