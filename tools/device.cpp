#include "tools/device.h"

#include "cuda/device.h"

namespace sinkhorn {

ChosenDevice choose_device(const std::string& name) {
  if (name == "cpu") return {};
  const cuda::Probe probe = cuda::probe();
  const std::string why = probe.devices.empty() ? "no GPU: " + probe.reason
                                                : "in this version no operation runs on " + probe.devices.front().name;
  if (name == "cuda") fail<DeviceError>("--device cuda: ", why, "; use --device cpu");
  return {Device::cpu, why};
}

}  // namespace sinkhorn
